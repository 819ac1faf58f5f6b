//! `KUBECONFIG`: how the node role and the gateway reach the API server.

use std::path::PathBuf;

use super::source::Reader;

/// The file, which must be readable; `None` when the variable is unset and the process runs in a pod, where Kubernetes
/// provides address and credentials.
pub(super) fn read(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let Some(path) = reader.text("KUBECONFIG") else {
        if reader.text("KUBERNETES_SERVICE_HOST").is_none() {
            reader.fail(
                "KUBECONFIG is not set, nor is KUBERNETES_SERVICE_HOST, which every pod has: the API server cannot be \
                 reached; set KUBECONFIG to a readable kubeconfig file",
            );
        }
        return None;
    };
    if let Err(error) = std::fs::File::open(&path) {
        reader.fail(format!("KUBECONFIG={path}: {error}"));
    }
    Some(path.into())
}
