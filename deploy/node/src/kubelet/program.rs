//! From an image's name to a program that is built in: the stand-in for pulling images.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::spec::{PodExt, expand};
use crate::program::in_path;

/// The variable that tells the sample's server for how many seconds it is to drain.
const DRAIN: &str = "DRAIN_SECONDS";

/// What runs for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
}

/// Where programs are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Programs<'a> {
    /// This one.
    pub(super) own: &'a Path,
    /// Folder of `isthmus`.
    pub(super) bin: &'a Path,
    /// The agent, when it is another one.
    pub(super) agent: Option<&'a Path>,
}

/// The program for a container, or why there is none. `$(NAME)` in arguments is filled in from its variables.
pub(super) fn of(
    container: &Container,
    pod: &Pod,
    programs: &Programs<'_>,
    variables: &[(String, String)],
) -> Result<Program, String> {
    let full = container.image.as_deref().unwrap_or_default();
    let image = full.rsplit('/').next().unwrap_or_default();
    let image = image.split(['@', ':']).next().unwrap_or_default();
    let own = |args: &[&str]| Program {
        path: programs.own.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
    };
    let given = || container.args.iter().flatten().map(|arg| expand(arg, variables)).collect();
    let isthmus = programs.bin.join("isthmus");
    match image {
        "isthmus" => Ok(Program { path: isthmus, args: given() }),
        "ztunnel" => Ok(Program { path: programs.agent.map_or(isthmus, Path::to_owned), args: given() }),
        "isthmus-playground" => Ok(Program { path: programs.own.to_owned(), args: given() }),
        "prometheus" => match in_path(image) {
            Some(path) => Ok(Program { path, args: given() }),
            None => Err(format!("image {full}: there is no program {image} in PATH")),
        },
        "curl" | "sleep" | "busybox" => Ok(own(&["sleep"])),
        _ if image.contains("helloworld") => {
            let version =
                pod.metadata.labels.as_ref().and_then(|labels| labels.get("version")).map(String::as_str);
            let version = version.or_else(|| image.rsplit_once('-').map(|(_, last)| last)).unwrap_or("v1");
            let drain = variables.iter().find(|(name, _)| name == DRAIN).map_or("0", |(_, value)| value);
            let told = ["--version", version, "--instance", pod.name(), "--drain", drain];
            Ok(own(&[&["helloworld"], &told[..]].concat()))
        }
        _ => Err(format!("image {full}: the playground has no program for it")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn program(image: &str, args: &[&str]) -> Result<Program, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {}},
            "spec": {"containers": [{"name": "c", "image": image, "args": args}]},
        }))
        .unwrap();
        let variables = [("PORT".to_owned(), "53".to_owned())];
        let agent = args.contains(&"other").then(|| Path::new("/opt/other"));
        let programs = Programs { own: Path::new("/me"), bin: Path::new("/bin"), agent };
        of(&pod.containers()[0], &pod, &programs, &variables)
    }

    #[test]
    fn images_stand_for_programs() {
        let hello = program("docker.io/istio/examples-helloworld-v2:1.0", &[]).unwrap();
        assert_eq!(hello.args, ["helloworld", "--version", "v2", "--instance", "p", "--drain", "0"]);
        assert_eq!(program("curlimages/curl:8.16.0@sha256:0", &[]).unwrap().args, ["sleep"]);
        let gateway = program("isthmus", &["gateway"]).unwrap();
        assert_eq!((gateway.path, gateway.args), ("/bin/isthmus".into(), vec!["gateway".into()]));
        let agent = program("istio/ztunnel:1.31.0", &["proxy", "ztunnel"]).unwrap();
        assert_eq!((agent.path, agent.args), ("/bin/isthmus".into(), vec!["proxy".into(), "ztunnel".into()]));
        assert_eq!(program("ztunnel", &["other"]).unwrap().path, Path::new("/opt/other"));
        assert_eq!(program("isthmus-playground", &["x", "--p=$(PORT)"]).unwrap().args, ["x", "--p=53"]);
    }

    #[test]
    fn an_unknown_image_is_named() {
        let error = program("nginx:1", &[]).unwrap_err();
        assert_eq!(error, "image nginx:1: the playground has no program for it");
    }
}
