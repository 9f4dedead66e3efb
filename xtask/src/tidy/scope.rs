//! Finds the module that a path means.

use super::modules::{Module, Tree};

/// How many re-exports are followed.
const DEPTH: usize = 16;

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning {
    /// The module, or the one that declares the item.
    pub(super) module: usize,
    /// Something in the module, rather than the module itself.
    pub(super) item: bool,
}

impl Tree {
    /// Finds what a path in a module means; nothing if that is in another crate, or is no name of a module's.
    pub(super) fn resolve(&self, from: usize, path: &[String]) -> Option<Meaning> {
        self.follow(from, path, DEPTH)
    }

    fn follow(&self, from: usize, path: &[String], depth: usize) -> Option<Meaning> {
        let (first, rest) = path.split_first()?;
        let depth = depth.checked_sub(1)?;
        let begin = match first.as_str() {
            "crate" => Meaning { module: 0, item: false },
            "self" => Meaning { module: from, item: false },
            "super" => Meaning { module: self.0[from].parent?, item: false },
            name => self.named(from, name, depth)?,
        };
        rest.iter().try_fold(begin, |at, name| {
            if at.item {
                // What belongs to a type is where the type is.
                return Some(at);
            }
            if name == "super" {
                return Some(Meaning { module: self.0[at.module].parent?, item: false });
            }
            if let Some(found) = self.named(at.module, name, depth) {
                return Some(found);
            }
            let external = self.0[at.module].imports.contains_key(name);
            (!external).then_some(Meaning { module: at.module, item: true })
        })
    }

    /// What a name means in a module: its child, its item, or what it imports.
    fn named(&self, at: usize, name: &str, depth: usize) -> Option<Meaning> {
        let module: &Module = &self.0[at];
        if let Some(child) = module.children.get(name) {
            return Some(Meaning { module: *child, item: false });
        }
        if module.items.contains(name) {
            return Some(Meaning { module: at, item: true });
        }
        if let Some(path) = module.imports.get(name) {
            // `use name;` or `use name::…` in the module that it is about would lead here again.
            return self.follow(at, path, depth);
        }
        let depth = depth.checked_sub(1)?;
        module.globs.iter().find_map(|path| {
            let target = self.follow(at, path, depth)?;
            if target.item || target.module == at { None } else { self.named(target.module, name, depth) }
        })
    }
}
