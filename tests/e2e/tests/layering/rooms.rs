//! The rooms of `agent/proxy`, and circles of files in any crate.

use std::collections::{BTreeMap, BTreeSet};

use crate::crates;
use crate::scan::{self, Imports};

/// The rooms of `agent/proxy` with their floors: a file or folder beside `lib.rs`, which belongs to none. A room imports
/// only from rooms on strictly lower floors.
const PROXY_ROOMS: [(&str, u8); 17] = [
    ("pod", 13),
    ("agent_pod", 13),
    ("handover", 12),
    ("gateway", 11),
    ("inbound", 10),
    ("outbound", 10),
    ("server", 9),
    ("dial", 8),
    ("context", 7),
    ("accept", 6),
    ("telemetry", 5),
    ("tracker", 4),
    ("retry", 3),
    ("error", 2),
    ("config", 0),
    ("host_resolver", 0),
    ("types", 0),
];

/// Circles that stay: crate, files (all of the circle), and why.
const ALLOWED_CIRCLES: [(&str, &[&str], &str); 0] = [];

/// The room of a file: its first folder, or its name.
fn room(file: &str) -> &str {
    let first = file.split('/').next().unwrap_or(file);
    first.trim_end_matches(".rs")
}

/// Imports that do not go down, in words.
fn upward(imports: &Imports, rooms: &[(&str, u8)]) -> Vec<String> {
    let floors: BTreeMap<_, _> = rooms.iter().copied().collect();
    let mut found = Vec::new();
    for (from, to) in imports.iter().filter(|(from, _)| *from != "lib.rs") {
        let Some(floor) = floors.get(room(from)) else {
            found.push(format!("{from} is in no room: give {} a floor", room(from)));
            continue;
        };
        for (to, path) in to.iter().filter(|(to, _)| room(to) != room(from)) {
            if floors.get(room(to)).is_none_or(|below| below >= floor) {
                found.push(format!("{from} (floor {floor}) imports {path} from {to}"));
            }
        }
    }
    found
}

/// Each set of files that import one another in a circle. A module and the files in its folder may: children use what
/// their parent declares, and the parent assembles them. Without the parent no circle may be left among them.
fn circles(imports: &Imports) -> Vec<BTreeSet<String>> {
    let mut found = Vec::new();
    for circle in components(imports) {
        let parent =
            circle.iter().find(|parent| circle.iter().all(|file| file == *parent || is_below(file, parent)));
        match parent {
            Some(parent) => {
                found.extend(circles(&within(imports, |file| file != parent && circle.contains(file))))
            }
            None => found.push(circle),
        }
    }
    found
}

/// Whether a file belongs to a module below that of `parent`.
fn is_below(file: &str, parent: &str) -> bool {
    let root = ["lib.rs", "main.rs"].contains(&parent);
    root || file.strip_prefix(parent.trim_end_matches(".rs")).is_some_and(|rest| rest.starts_with('/'))
}

/// The part of the imports that is between files of a kind.
fn within(imports: &Imports, keep: impl Fn(&String) -> bool) -> Imports {
    let among = |to: &BTreeMap<String, String>| to.clone().into_iter().filter(|(to, _)| keep(to)).collect();
    imports.iter().filter(|(from, _)| keep(from)).map(|(from, to)| (from.clone(), among(to))).collect()
}

/// The largest sets of files each of which reaches every other one.
fn components(imports: &Imports) -> BTreeSet<BTreeSet<String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> =
        imports.keys().map(|file| (file, reachable(imports, file))).collect();
    let mutual = |file: &String, other: &String| reach.get(other).is_some_and(|all| all.contains(file));
    let of = |(file, reached): (&&String, &BTreeSet<&String>)| {
        let circle = reached.iter().filter(|other| mutual(file, other)).map(|other| (*other).clone());
        circle.collect::<BTreeSet<_>>()
    };
    reach.iter().map(of).filter(|circle| !circle.is_empty()).collect()
}

/// Everything that a file imports, directly or not.
fn reachable<'a>(imports: &'a Imports, file: &String) -> BTreeSet<&'a String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![file]);
    while let Some(next) = open.pop() {
        for to in imports.get(next).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(to) {
                open.push(to);
            }
        }
    }
    seen
}

/// A circle with the imports that make it.
fn show(name: &str, circle: &BTreeSet<String>, imports: &Imports) -> String {
    let mut text = format!("{name}: {} files in a circle", circle.len());
    for from in circle {
        for (to, path) in imports[from].iter().filter(|(to, _)| circle.contains(*to)) {
            text.push_str(&format!("\n    {from} → {to} ({path})"));
        }
    }
    text
}

#[test]
fn rooms_of_the_proxy_import_downwards_only() {
    let (folder, root) = crates::sources("isthmus-proxy").unwrap();
    let imports = scan::imports(&scan::read(&folder).unwrap(), &root).unwrap();
    let found = upward(&imports, &PROXY_ROOMS);
    assert!(found.is_empty(), "{}", found.join("\n"));
    let missing = PROXY_ROOMS.iter().filter(|(name, _)| !imports.keys().any(|file| room(file) == *name));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&(&str, u8)>::new(), "rooms without a file");
}

#[test]
fn no_files_of_a_crate_import_one_another_in_a_circle() {
    let mut found = Vec::new();
    let mut allowed: Vec<_> = ALLOWED_CIRCLES.iter().collect();
    for name in crates::names() {
        let (folder, root) = crates::sources(name).unwrap();
        let imports = scan::imports(&scan::read(&folder).unwrap(), &root).unwrap();
        for circle in circles(&imports) {
            let before = allowed.len();
            allowed.retain(|(of, files, _)| {
                *of != name || !circle.iter().eq(files.iter().copied().collect::<BTreeSet<_>>())
            });
            if allowed.len() < before {
                continue;
            }
            found.push(show(name, &circle, &imports));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(allowed.is_empty(), "these circles are gone, take them off the list: {allowed:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    const ROOMS: [(&str, u8); 3] = [("top", 1), ("left", 0), ("right", 0)];

    fn imports(files: &[(&str, &str)]) -> Imports {
        scan::imports(&made_up(files), "lib.rs").unwrap()
    }

    #[test]
    fn an_import_upwards_or_sideways_is_found_however_it_is_written() {
        let with = |left: &str| {
            let files = [
                ("lib.rs", "mod top; mod left; mod right; pub use top::Top;"),
                ("top.rs", "use crate::left::inner::leaf; pub struct Top;"),
                ("left.rs", "pub(crate) mod inner;"),
                ("left/inner.rs", left),
                ("right.rs", "pub(crate) fn f() {}"),
            ];
            upward(&imports(&files), &ROOMS)
        };
        assert_eq!(with("pub(crate) fn leaf() {}"), [""; 0]);
        for upwards in [
            "use crate::top::Top; fn leaf() {}",
            "use crate::Top; fn leaf() {}",
            "fn leaf() { super::super::top::Top; }",
            "fn leaf() { crate::right::f() }",
            "use super::super::{right, top::{self}}; fn leaf() { right::f() }",
        ] {
            assert_eq!(with(upwards).len(), 1, "{upwards}");
        }
    }

    #[test]
    fn a_file_without_a_room_is_found() {
        let files = [("lib.rs", "mod attic;"), ("attic.rs", "")];
        assert_eq!(upward(&imports(&files), &ROOMS).len(), 1);
    }

    #[test]
    fn a_circle_is_found_and_a_diamond_is_none() {
        let diamond = [
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "use crate::b::B; use crate::c::C;"),
            ("b.rs", "use crate::d::D; pub(crate) struct B;"),
            ("c.rs", "use crate::d::D; pub(crate) struct C;"),
            ("d.rs", "pub(crate) struct D;"),
        ];
        assert_eq!(circles(&imports(&diamond)), []);
        let mut circle = diamond;
        circle[4].1 = "use crate::b; pub(crate) struct D(b::B);";
        let found = circles(&imports(&circle));
        assert_eq!(found, [BTreeSet::from(["b.rs".to_owned(), "d.rs".to_owned()])]);
    }

    #[test]
    fn a_module_and_its_children_are_no_circle_but_the_children_may_be_one() {
        let mut files = [
            ("lib.rs", "mod a;"),
            ("a.rs", "mod x; mod y; use x::X; use y::Y; pub(crate) struct A;"),
            ("a/x.rs", "use super::A; pub(crate) struct X;"),
            ("a/y.rs", "use super::x::X; pub(crate) struct Y;"),
        ];
        assert_eq!(circles(&imports(&files)), []);
        files[2].1 = "use super::{A, y::Y}; pub(crate) struct X;";
        let found = circles(&imports(&files));
        assert_eq!(found, [BTreeSet::from(["a/x.rs".to_owned(), "a/y.rs".to_owned()])]);
    }
}
