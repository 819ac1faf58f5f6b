//! Reads the modules of a crate and which file imports from which. It knows Rust's paths, not its types: tokens, `mod`,
//! `use` and qualified paths are enough. Test-only code is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::lex::{Token, tokens};

/// Importing file → imported file → the path by which it is imported. Files are relative to the crate's source folder.
pub(crate) type Imports = BTreeMap<String, BTreeMap<String, String>>;

/// The files of a crate and their contents, by path relative to the source folder.
pub(crate) type Sources = BTreeMap<String, String>;

/// Path of a module, from the crate's root.
type ModulePath = Vec<String>;

#[derive(Debug, Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    /// Names of items that are defined here.
    items: BTreeSet<String>,
    uses: Vec<Use>,
    /// Qualified paths outside `use`.
    paths: Vec<Vec<String>>,
    /// How often each identifier stands outside `use`.
    names: BTreeMap<String, usize>,
}

/// One leaf of a `use` tree.
#[derive(Debug, Clone)]
struct Use {
    path: Vec<String>,
    /// The name that it brings into scope; `None` for a glob.
    name: Option<String>,
    /// `pub use`, with or without a restriction.
    reexport: bool,
}

/// Where a path leads.
enum Target {
    Module(ModulePath),
    Item(String),
}

struct Crate(BTreeMap<ModulePath, Module>);

/// Longest chain of re-exports that is followed.
const FUEL: usize = 12;

const ITEM_KEYWORDS: [&str; 9] =
    ["struct", "enum", "fn", "trait", "type", "const", "static", "union", "macro_rules"];

/// The sources of a folder.
pub(crate) fn read(folder: &Path) -> Result<Sources> {
    let (mut sources, mut folders) = (Sources::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path: PathBuf = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(folder)?.to_string_lossy().into_owned();
                sources.insert(name, std::fs::read_to_string(&path)?);
            }
        }
    }
    Ok(sources)
}

/// Which file imports from which, in the crate with this root file (`lib.rs` or `main.rs`).
///
/// # Errors
/// When a module that is declared has no file.
pub(crate) fn imports(sources: &Sources, root: &str) -> Result<Imports> {
    let mut known = Crate(BTreeMap::new());
    known.load(sources, root, Vec::new())?;
    let mut all = Imports::new();
    for (at, module) in &known.0 {
        let from = all.entry(module.file.clone()).or_default();
        for (path, target) in known.imported(at, module) {
            if target != module.file {
                from.entry(target).or_insert_with(|| path.join("::"));
            }
        }
    }
    Ok(all)
}

// === impl Crate ===

impl Crate {
    /// Reads a file as the module `at`, and the modules that it declares.
    fn load(&mut self, sources: &Sources, file: &str, at: ModulePath) -> Result<()> {
        let text = sources.get(file).with_context(|| format!("no file {file}"))?;
        let mut declared = Vec::new();
        self.parse(&tokens(text), file, at.clone(), &mut declared);
        let stem = match file.rsplit('/').next() {
            Some("lib.rs" | "main.rs" | "mod.rs") => file.rfind('/').map_or("", |end| &file[..end]),
            _ => file.trim_end_matches(".rs"),
        };
        for child in declared {
            let below = child[at.len()..].join("/");
            let base = if stem.is_empty() { below } else { format!("{stem}/{below}") };
            let candidates = [format!("{base}.rs"), format!("{base}/mod.rs")];
            let found = candidates.iter().find(|candidate| sources.contains_key(*candidate));
            let found = found.with_context(|| format!("{file}: no file for module {}", child.join("::")))?;
            self.load(sources, found, child)?;
        }
        Ok(())
    }

    /// Reads the tokens of a module; modules that have a file of their own go to `declared`.
    fn parse(&mut self, tokens: &[Token], file: &str, at: ModulePath, declared: &mut Vec<ModulePath>) {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        let mut next = 0;
        while let Some(token) = tokens.get(next) {
            let Token::Ident(word) = token else {
                next += 1;
                continue;
            };
            match (word.as_str(), tokens.get(next + 1), tokens.get(next + 2)) {
                ("mod", Some(Token::Ident(name)), Some(Token::Punct(open))) => {
                    module.children.insert(name.clone());
                    let child = [at.as_slice(), std::slice::from_ref(name)].concat();
                    if *open == '{' {
                        let end = closing(tokens, next + 2);
                        self.parse(&tokens[next + 3..end], file, child, declared);
                        next = end + 1;
                    } else {
                        declared.push(child);
                        next += 3;
                    }
                }
                ("use", ..) => {
                    let end = (next..tokens.len())
                        .find(|at| tokens[*at] == Token::Punct(';'))
                        .unwrap_or(tokens.len());
                    let reexport = is_public(&tokens[..next]);
                    leaves(&tokens[next + 1..end], &[], &mut |path, name| {
                        module.uses.push(Use { path, name, reexport });
                    });
                    next = end + 1;
                }
                _ => next = module.word(tokens, next, word),
            }
        }
        self.0.insert(at, module);
    }

    /// Everything that a module imports: the path and the file where it leads.
    fn imported<'a>(&'a self, at: &'a ModulePath, module: &'a Module) -> Vec<(Vec<String>, String)> {
        let mut found = Vec::new();
        let mut add = |path: &[String], target| {
            if let Some(Target::Item(file)) = target {
                found.push((path.to_vec(), file));
            }
        };
        for one in &module.uses {
            match &one.name {
                // A façade does not depend on what it only passes on.
                Some(name) if one.reexport && !module.names.contains_key(name) => {}
                Some(_) => add(&one.path, self.resolve(at, &one.path, FUEL)),
                None if one.reexport => {}
                None => {
                    for name in module.names.keys() {
                        let path = [one.path.as_slice(), std::slice::from_ref(name)].concat();
                        if self.provides(at, &one.path, name) {
                            add(&path, self.resolve(at, &path, FUEL));
                        }
                    }
                }
            }
        }
        for path in &module.paths {
            add(path, self.resolve(at, path, FUEL));
        }
        found
    }

    /// Whether the module where `path` leads has an item or a re-export of this name.
    fn provides(&self, at: &ModulePath, path: &[String], name: &String) -> bool {
        let Some(Target::Module(target)) = self.resolve(at, path, FUEL) else { return false };
        self.0.get(&target).is_some_and(|module| {
            module.items.contains(name) || module.uses.iter().any(|one| one.name.as_ref() == Some(name))
        })
    }

    /// Follows a path from the module `at`; `None` when it leads out of the crate.
    fn resolve(&self, at: &ModulePath, path: &[String], fuel: usize) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.descend(Vec::new(), rest, fuel),
            "self" => self.descend(at.clone(), rest, fuel),
            "super" => self.descend(at[..at.len().checked_sub(1)?].to_vec(), rest, fuel),
            name => {
                let module = self.0.get(at)?;
                if module.children.contains(name) {
                    return self.descend([at.as_slice(), &path[..1]].concat(), rest, fuel);
                }
                let named = module.uses.iter().find(|one| one.name.as_ref() == Some(first))?;
                self.through(at, named, rest, fuel)
            }
        }
    }

    /// Follows what is left of a path below a module.
    fn descend(&self, module: ModulePath, rest: &[String], fuel: usize) -> Option<Target> {
        let Some((name, below)) = rest.split_first() else { return Some(Target::Module(module)) };
        if name == "super" {
            let parent = module[..module.len().checked_sub(1)?].to_vec();
            return self.descend(parent, below, fuel);
        }
        let here = self.0.get(&module)?;
        if here.items.contains(name) && (below.is_empty() || !here.children.contains(name)) {
            return Some(Target::Item(here.file.clone()));
        }
        if here.children.contains(name) {
            return self.descend([module.as_slice(), &rest[..1]].concat(), below, fuel);
        }
        if let Some(named) = here.uses.iter().find(|one| one.name.as_ref() == Some(name)) {
            return self.through(&module, named, below, fuel);
        }
        for glob in here.uses.iter().filter(|one| one.name.is_none()) {
            if self.provides(&module, &glob.path, name) {
                let path = [glob.path.as_slice(), rest].concat();
                return self.resolve(&module, &path, fuel.checked_sub(1)?);
            }
        }
        // An item that the scanner does not see, such as one made by a macro.
        Some(Target::Item(here.file.clone()))
    }

    /// Follows a `use` of the module `at`, and then what is left of the path.
    fn through(&self, at: &ModulePath, named: &Use, rest: &[String], fuel: usize) -> Option<Target> {
        let fuel = fuel.checked_sub(1)?;
        // `use name::…` beside `mod name` or a crate's name: not through itself.
        if named.path.first() == named.name.as_ref() && named.path.len() == 1 {
            return None;
        }
        match self.resolve(at, &named.path, fuel)? {
            Target::Module(module) => self.descend(module, rest, fuel),
            item @ Target::Item(_) => Some(item),
        }
    }
}

// === impl Module ===

impl Module {
    /// Takes in an identifier outside `use`: a definition, a qualified path, or a mere name. Returns what comes next.
    fn word(&mut self, tokens: &[Token], at: usize, word: &str) -> usize {
        let after = match tokens.get(at + 1) {
            // `macro_rules! name`
            Some(Token::Punct('!')) if word == "macro_rules" => tokens.get(at + 2),
            other => other,
        };
        if let (true, Some(Token::Ident(name))) = (ITEM_KEYWORDS.contains(&word), after) {
            self.items.insert(name.clone());
            return at + 2;
        }
        *self.names.entry(word.to_owned()).or_default() += 1;
        let mut path = vec![word.to_owned()];
        let mut next = at + 1;
        while let (Some(Token::PathSep), Some(Token::Ident(segment))) =
            (tokens.get(next), tokens.get(next + 1))
        {
            path.push(segment.clone());
            next += 2;
        }
        let continues = at > 0 && tokens[at - 1] == Token::PathSep;
        if path.len() > 1 && !continues {
            self.paths.push(path);
        }
        next
    }
}

/// Whether a `use` that follows these tokens is public in some way.
fn is_public(before: &[Token]) -> bool {
    match before {
        [.., Token::Ident(word)] => word == "pub",
        [.., Token::Punct(')')] => {
            let open = before.iter().rposition(|token| *token == Token::Punct('(')).unwrap_or_default();
            open > 0 && before[open - 1] == Token::Ident("pub".to_owned())
        }
        _ => false,
    }
}

/// Reports each leaf of a `use` tree: its path and the name that it brings into scope, `None` for a glob.
fn leaves(tree: &[Token], prefix: &[String], report: &mut impl FnMut(Vec<String>, Option<String>)) {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while let Some(token) = tree.get(at) {
        match token {
            Token::Ident(word) if word == "as" => {
                let Some(Token::Ident(alias)) = tree.get(at + 1) else { return };
                return report(path, Some(alias.clone()));
            }
            Token::Ident(word) if word == "self" && !path.is_empty() => {}
            Token::Ident(word) => path.push(word.clone()),
            Token::Punct('*') => return report(path, None),
            Token::Punct('{') => {
                let end = closing(tree, at);
                split(&tree[at + 1..end]).for_each(|branch| leaves(branch, &path, report));
                return;
            }
            _ => {}
        }
        at += 1;
    }
    if let Some(name) = path.last().cloned().filter(|_| !tree.is_empty()) {
        report(path, Some(name));
    }
}

/// The parts between the commas of this level.
fn split(tokens: &[Token]) -> impl Iterator<Item = &[Token]> {
    let mut depth = 0;
    tokens.split(move |token| {
        match token {
            Token::Punct('{') => depth += 1,
            Token::Punct('}') => depth -= 1,
            _ => {}
        }
        depth == 0 && *token == Token::Punct(',')
    })
}

/// The index of the brace that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Punct('{') => depth += 1,
            Token::Punct('}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    fn arrows(files: &[(&str, &str)]) -> Vec<String> {
        let imports = imports(&made_up(files), "lib.rs").unwrap();
        imports.iter().flat_map(|(from, to)| to.keys().map(move |to| format!("{from} → {to}"))).collect()
    }

    #[test]
    fn a_path_leads_through_re_exports_to_the_file_that_defines_the_item() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use b::deep::{self, Thing as Renamed};"),
            ("a.rs", "use crate::Renamed; fn f() { crate::b::helper(); }"),
            ("b.rs", "pub(crate) mod deep; pub(crate) use self::deep::helper;"),
            ("b/deep.rs", "pub struct Thing; pub(crate) fn helper() {}"),
        ];
        assert_eq!(arrows(&files), ["a.rs → b/deep.rs"]);
    }

    #[test]
    fn imports_by_super_by_a_child_and_by_a_glob_count() {
        let files = [
            ("lib.rs", "mod a;"),
            ("a.rs", "mod x; mod y; struct Own; fn f() { y::g() }"),
            ("a/x.rs", "use super::*; fn f(_: Own) {}"),
            ("a/y.rs", "use super::x as other; pub(super) fn g() { other::f() }"),
        ];
        assert_eq!(arrows(&files), ["a.rs → a/y.rs", "a/x.rs → a.rs", "a/y.rs → a/x.rs"]);
    }

    #[test]
    fn tests_comments_and_strings_import_nothing() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            (
                "a.rs",
                "// crate::b::f\nconst A: &str = \"crate::b::f\";\n#[cfg(test)] mod tests { use crate::b::f; }",
            ),
            ("b.rs", "#[cfg(test)] use crate::a::A; #[cfg(test)] mod tests; pub(crate) fn f() {}"),
        ];
        assert_eq!(arrows(&files), [""; 0]);
    }
}
