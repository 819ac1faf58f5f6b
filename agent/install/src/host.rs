//! What is installed on this host: compared with what should be, brought there, and removed. Blocking. The order is such
//! that no container runtime finds an entry whose binary or kubeconfig is missing.

use std::io;
use std::path::PathBuf;

use crate::config::Config;
use crate::conflist::{self, NoNetwork, Plan, Write};
use crate::entry::PLUGIN;
use crate::files;
use crate::kubeconfig::{self, Cluster};

/// Name of the plugin's kubeconfig in the run folder.
const KUBECONFIG: &str = "istio-cni-kubeconfig";

/// What is not as it should be.
#[derive(Debug, Default)]
pub(crate) struct Drift {
    pub(crate) binary: bool,
    /// The text that it should have.
    pub(crate) kubeconfig: Option<String>,
    pub(crate) plan: Plan,
}

/// Why the host cannot be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompareError {
    /// There is no network to be added to.
    #[error("{0}")]
    NoNetwork(#[from] NoNetwork),
    /// The folder of network configurations cannot be read.
    #[error("network configurations (MOUNTED_CNI_NET_DIR): {0}")]
    Folder(io::Error),
    /// The roots of the API server cannot be read.
    #[error("roots of the API server (KUBE_CA_FILE): {0}")]
    Roots(io::Error),
}

/// Why an installation failed: the step and its file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// The binary was not copied.
    #[error("the plugin's binary cannot be installed: {cause}{}", hint(cause))]
    Binary {
        /// Why.
        cause: io::Error,
    },
    /// The kubeconfig was not written.
    #[error("the plugin's kubeconfig cannot be written: {cause}{}", hint(cause))]
    Kubeconfig {
        /// Why.
        cause: io::Error,
    },
    /// The network configuration was not written.
    #[error("the network configuration cannot be written: {cause}{}", hint(cause))]
    Conflist {
        /// Why.
        cause: io::Error,
    },
}

/// What to look at.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            " (the folder of the host must be mounted writable, and the role run as user 0 with DAC_OVERRIDE)"
        }
        io::ErrorKind::NotFound => " (is the folder of the host mounted?)",
        _ => "",
    }
}

impl InstallError {
    /// The label of the metric.
    pub(crate) fn result(&self) -> &'static str {
        match self {
            Self::Binary { .. } => "COPY_BINARIES_FAILURE",
            Self::Kubeconfig { .. } => "CREATE_KUBECONFIG_FAILURE",
            Self::Conflist { .. } => "CREATE_CNI_CONFIG_FAILURE",
        }
    }
}

impl Drift {
    pub(crate) fn is_none(&self) -> bool {
        !self.binary && self.kubeconfig.is_none() && self.plan.is_done()
    }

    /// Whether only the kubeconfig differs, as when its token is renewed.
    pub(crate) fn is_kubeconfig_only(&self) -> bool {
        !self.binary && self.plan.is_done()
    }
}

/// Compares.
///
/// # Errors
/// See [`CompareError`].
pub(crate) fn compare(config: &Config, token: &str) -> Result<Drift, CompareError> {
    let found = files::configurations(&config.net_dir, config.layout.name.as_deref());
    let plan = conflist::plan(&found.map_err(CompareError::Folder)?, &config.layout, &config.entry)?;
    let roots = match &config.roots {
        Some(path) => Some(std::fs::read(path).map_err(|error| {
            CompareError::Roots(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        })?),
        None => None,
    };
    let wanted = kubeconfig::render(&Cluster { server: config.server.clone(), roots }, token);
    let path = kubeconfig_path(config);
    let right = files::mode(&path) == Some(config.kubeconfig_mode)
        && std::fs::read(&path).is_ok_and(|there| there == wanted.as_bytes());
    Ok(Drift {
        binary: !files::same(&config.binary, &binary_path(config)),
        kubeconfig: (!right).then_some(wanted),
        plan,
    })
}

/// Brings the host to where it should be.
///
/// # Errors
/// With the first step that failed; the later ones are not done.
pub(crate) fn install(config: &Config, drift: &Drift) -> Result<(), InstallError> {
    if drift.binary {
        files::copy(&config.binary, &binary_path(config)).map_err(|cause| InstallError::Binary { cause })?;
    }
    if let Some(text) = &drift.kubeconfig {
        std::fs::create_dir_all(&config.run_dir)
            .and_then(|()| files::replace(&kubeconfig_path(config), text.as_bytes(), config.kubeconfig_mode))
            .map_err(|cause| InstallError::Kubeconfig { cause })?;
    }
    apply(config, &drift.plan).map_err(|cause| InstallError::Conflist { cause })
}

/// Removes everything, the entry first. Goes on after a step that fails.
///
/// # Errors
/// Every step that failed.
pub(crate) fn remove(config: &Config) -> Vec<io::Error> {
    let unplugged = files::configurations(&config.net_dir, config.layout.name.as_deref())
        .and_then(|found| apply(config, &conflist::removal(&found, &config.layout)));
    let mut steps = vec![unplugged];
    // A binary that an entry still names must stay: without it no pod can start at all.
    if steps[0].is_ok() {
        steps.push(files::remove(&kubeconfig_path(config)));
        steps.push(files::remove(&binary_path(config)));
    }
    steps.into_iter().filter_map(Result::err).collect()
}

/// Removes what a run that was killed has left behind.
pub(crate) fn remove_stale(config: &Config) {
    files::remove_stale(&binary_path(config));
    files::remove_stale(&kubeconfig_path(config));
    for name in
        files::configurations(&config.net_dir, config.layout.name.as_deref()).unwrap_or_default().keys()
    {
        files::remove_stale(&config.net_dir.join(name));
    }
}

fn apply(config: &Config, plan: &Plan) -> io::Result<()> {
    let folder = &config.net_dir;
    for Write { name, text, mode_of } in &plan.writes {
        let kept = mode_of.as_ref().and_then(|name| files::mode(&folder.join(name)));
        files::replace(&folder.join(name), text.as_bytes(), kept.unwrap_or(config.conflist_mode))?;
    }
    plan.removes.iter().try_for_each(|name| files::remove(&folder.join(name)))
}

fn binary_path(config: &Config) -> PathBuf {
    config.bin_dir.join(PLUGIN)
}

fn kubeconfig_path(config: &Config) -> PathBuf {
    config.run_dir.join(KUBECONFIG)
}
