//! From an image's name to a program that is built in: the stand-in for pulling images.

use std::path::{Path, PathBuf};

use super::spec::{Container, Pod, expand};
use crate::binaries;

/// What runs for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
}

/// The program for a container, or why there is none. `$(NAME)` in arguments is filled in from its variables.
pub(super) fn of(
    container: &Container,
    pod: &Pod,
    exe: &Path,
    bin: &Path,
    variables: &[(String, String)],
) -> Result<Program, String> {
    let image = container.image.rsplit('/').next().unwrap_or_default();
    let image = image.split(['@', ':']).next().unwrap_or_default();
    let own = |args: &[&str]| Program {
        path: exe.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
    };
    let given = || container.args.iter().map(|arg| expand(arg, variables)).collect();
    match image {
        "isthmus" => Ok(Program { path: bin.join(binaries::ISTHMUS), args: given() }),
        "isthmus-playground" => Ok(Program { path: exe.to_owned(), args: given() }),
        "curl" | "sleep" | "busybox" => Ok(own(&["sleep"])),
        _ if image.contains("helloworld") => {
            let version = pod.metadata.labels.get("version").map(String::as_str);
            let version = version.or_else(|| image.rsplit_once('-').map(|(_, last)| last)).unwrap_or("v1");
            Ok(own(&["helloworld", "--version", version, "--instance", &pod.metadata.name]))
        }
        _ => Err(format!("image {}: nothing built in stands for it", container.image)),
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
        of(&pod.spec.containers[0], &pod, Path::new("/me"), Path::new("/bin"), &variables)
    }

    #[test]
    fn images_stand_for_programs() {
        let hello = program("docker.io/istio/examples-helloworld-v2:1.0", &[]).unwrap();
        assert_eq!(hello.args, ["helloworld", "--version", "v2", "--instance", "p"]);
        assert_eq!(program("curlimages/curl:8.16.0@sha256:0", &[]).unwrap().args, ["sleep"]);
        let agent = program("isthmus", &["agent"]).unwrap();
        assert_eq!((agent.path, agent.args), ("/bin/isthmus".into(), vec!["agent".into()]));
        assert_eq!(program("isthmus-playground", &["x", "--p=$(PORT)"]).unwrap().args, ["x", "--p=53"]);
    }

    #[test]
    fn an_unknown_image_is_named() {
        let error = program("nginx:1", &[]).unwrap_err();
        assert_eq!(error, "image nginx:1: nothing built in stands for it");
    }
}
