//! The bill of materials: CycloneDX 1.5, the JSON form (cyclonedx.org/docs/1.5/json). Its only time is the commit's, and
//! it has no serial number, which would differ with every build.

use serde_json::{Value, json};

use crate::commit::Commit;
use crate::packages::{PROGRAMS, Package};
use crate::toolchain::Toolchain;

/// The name of the whole in it.
const IMAGE: &str = "isthmus-image";

/// The bill of what is inside.
pub(crate) fn cyclonedx(inside: &[Package], commit: &Commit, toolchain: &Toolchain) -> Value {
    let mut components: Vec<Value> = inside.iter().map(component).collect();
    components.push(json!({
        "type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": toolchain.rust,
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
    }));
    components.push(json!({
        "type": "library", "bom-ref": "musl", "name": "musl", "version": toolchain.musl,
        "purl": format!("pkg:generic/musl@{}", toolchain.musl), "licenses": [{"expression": "MIT"}],
    }));
    let mut dependencies: Vec<Value> =
        inside.iter().map(|package| json!({"ref": package.id(), "dependsOn": package.imports})).collect();
    let programs: Vec<String> =
        inside.iter().filter(|one| PROGRAMS.contains(&one.name.as_str())).map(Package::id).collect();
    let libraries = ["musl", "rust-std"].map(str::to_owned);
    let all = [programs.as_slice(), &libraries].concat();
    dependencies.push(json!({"ref": IMAGE, "dependsOn": all}));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": commit.date(),
            "component": {
                "type": "container", "bom-ref": IMAGE, "name": "isthmus", "version": env!("CARGO_PKG_VERSION"),
                "licenses": [{"expression": env!("CARGO_PKG_LICENSE")}],
            },
            "properties": [
                {"name": "isthmus:revision", "value": commit.revision},
                {"name": "isthmus:rustc", "value": toolchain.rust},
                {"name": "isthmus:cc", "value": toolchain.cc},
            ],
        },
        "components": components,
        "dependencies": dependencies,
    })
}

fn component(package: &Package) -> Value {
    let kind = if PROGRAMS.contains(&package.name.as_str()) { "application" } else { "library" };
    let mut value = json!({
        "type": kind, "bom-ref": package.id(), "name": package.name, "version": package.version,
        "licenses": [{"expression": package.license}],
    });
    if !package.own {
        value["purl"] = json!(format!("pkg:cargo/{}", package.id()));
        value["hashes"] = json!([{"alg": "SHA-256", "content": package.checksum}]);
    }
    if !package.repository.is_empty() {
        value["externalReferences"] = json!([{"type": "vcs", "url": package.repository}]);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reference_of_the_bill_is_a_component() {
        let workspace = crate::workspace().unwrap();
        let inside = crate::packages::inside(&workspace, crate::TARGET).unwrap();
        let commit = Commit { revision: "abc".to_owned(), time: 1_700_000_000 };
        let bill = cyclonedx(&inside, &commit, &Toolchain::default());
        assert_eq!(bill["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let components: BTreeSet<_> =
            bill["components"].as_array().unwrap().iter().map(|one| text(&one["bom-ref"])).collect();
        assert_eq!(components.len(), inside.len() + 2, "a reference is there twice");
        for dependency in bill["dependencies"].as_array().unwrap() {
            for import in dependency["dependsOn"].as_array().unwrap() {
                assert!(components.contains(&text(import)), "{import}");
            }
        }
        let tls = bill["components"].as_array().unwrap().iter().find(|one| one["name"] == "rustls").unwrap();
        assert!(text(&tls["purl"]).starts_with("pkg:cargo/rustls@"), "{tls}");
        assert_eq!(text(&tls["hashes"][0]["content"]).len(), 64);
    }
}
