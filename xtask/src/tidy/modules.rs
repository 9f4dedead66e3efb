//! The modules of a crate: which file has which, what each declares and what it imports.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{Source, is_test};

/// A module of a crate.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// The number of its file among the sources.
    pub(super) file: usize,
    pub(super) parent: Option<usize>,
    pub(super) children: BTreeMap<String, usize>,
    /// Names that a `use` brings in, each with its path.
    pub(super) imports: BTreeMap<String, Vec<String>>,
    /// Paths of which a `use` brings everything in.
    pub(super) globs: Vec<Vec<String>>,
    pub(super) items: BTreeSet<String>,
    /// Compiled for tests only.
    pub(super) test: bool,
}

/// The module tree of one crate: a library, a program, or a test of several files. The first module is its root.
#[derive(Debug)]
pub(super) struct Tree(pub(super) Vec<Module>);

/// A path of a `use` declaration.
#[derive(Debug)]
pub(super) struct Import {
    pub(super) path: Vec<String>,
    /// The name that it gets; nothing for `*` and `_`.
    pub(super) name: Option<String>,
    pub(super) glob: bool,
    pub(super) line: usize,
}

impl Tree {
    /// Reads the trees of all crates: first those of libraries and programs, then files that belong to no earlier one.
    pub(super) fn all(sources: &[Source]) -> Vec<Self> {
        let numbers: BTreeMap<&str, usize> =
            (0..).zip(sources).map(|(n, source)| (&*source.path, n)).collect();
        let mut roots: Vec<usize> = (0..sources.len()).collect();
        roots.sort_by_key(|number| {
            let path = &sources[*number].path;
            (!is_root(path), path.matches('/').count(), path.clone())
        });
        let mut taken = vec![false; sources.len()];
        let mut trees = Vec::new();
        for root in roots {
            if taken[root] {
                continue;
            }
            let mut reader = Reader { sources, numbers: &numbers, modules: Vec::new() };
            let folder = parent(&sources[root].path).to_owned();
            reader.module(root, None, &sources[root].syntax.items, &folder, false);
            for module in &reader.modules {
                taken[module.file] = true;
            }
            trees.push(Self(reader.modules));
        }
        trees
    }
}

/// Whether cargo takes such a file for a crate by itself.
fn is_root(path: &str) -> bool {
    path.ends_with("/src/lib.rs") || path.ends_with("/main.rs")
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Reads one tree.
struct Reader<'a> {
    sources: &'a [Source],
    numbers: &'a BTreeMap<&'a str, usize>,
    modules: Vec<Module>,
}

impl Reader<'_> {
    /// Reads a module; `folder` is where the files of its children are.
    fn module(
        &mut self,
        file: usize,
        parent: Option<usize>,
        items: &[syn::Item],
        folder: &str,
        test: bool,
    ) -> usize {
        let number = self.modules.len();
        self.modules.push(Module { file, parent, test, ..Module::default() });
        for item in items {
            match item {
                syn::Item::Mod(child) => self.child(number, child, folder),
                syn::Item::Use(import) => self.import(number, import),
                item => self.modules[number].items.extend(name(item)),
            }
        }
        number
    }

    fn child(&mut self, parent: usize, child: &syn::ItemMod, folder: &str) {
        let (file, test) = (self.modules[parent].file, self.modules[parent].test || is_test(&child.attrs));
        let below = format!("{folder}/{}", child.ident);
        let number = if let Some((_, items)) = &child.content {
            self.module(file, Some(parent), items, &below, test)
        } else {
            let named = explicit_path(&child.attrs)
                .map(|path| format!("{}/{path}", self::parent(&self.sources[file].path)));
            let candidates = [named, Some(format!("{below}.rs")), Some(format!("{below}/mod.rs"))];
            let found = candidates.iter().flatten().find_map(|path| self.numbers.get(path.as_str()));
            let Some(&found) = found else { return };
            let sources = self.sources;
            self.module(found, Some(parent), &sources[found].syntax.items, &below, test)
        };
        self.modules[parent].children.insert(child.ident.to_string(), number);
    }

    fn import(&mut self, number: usize, item: &syn::ItemUse) {
        for import in imports(item) {
            let module = &mut self.modules[number];
            if import.glob {
                module.globs.push(import.path);
            } else if let Some(name) = import.name {
                module.imports.insert(name, import.path);
            }
        }
    }
}

/// The path in `#[path = "…"]`.
fn explicit_path(attributes: &[syn::Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(syn::MetaNameValue {
            path,
            value: syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }),
            ..
        }) if path.is_ident("path") => Some(text.value()),
        _ => None,
    })
}

/// The name of what an item declares.
fn name(item: &syn::Item) -> Option<String> {
    let ident = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        syn::Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// Takes a `use` declaration apart.
pub(super) fn imports(item: &syn::ItemUse) -> Vec<Import> {
    let mut found = Vec::new();
    // `use ::name` is always another crate.
    if item.leading_colon.is_none() {
        take_apart(&item.tree, &mut Vec::new(), &mut found);
    }
    found
}

fn take_apart(tree: &syn::UseTree, path: &mut Vec<String>, found: &mut Vec<Import>) {
    let mut import = |ident: &syn::Ident, name: &syn::Ident| {
        let line = ident.span().start().line;
        let mut path = path.clone();
        let name = if ident == name { None } else { Some(name) };
        if ident != "self" {
            path.push(ident.to_string());
        }
        let name = name.map_or_else(|| path.last().cloned(), |name| Some(name.to_string()));
        found.push(Import { path, name: name.filter(|name| name != "_"), glob: false, line });
    };
    match tree {
        syn::UseTree::Path(part) => {
            path.push(part.ident.to_string());
            take_apart(&part.tree, path, found);
            path.pop();
        }
        syn::UseTree::Name(last) => import(&last.ident, &last.ident),
        syn::UseTree::Rename(last) => import(&last.ident, &last.rename),
        syn::UseTree::Glob(star) => {
            let line = star.star_token.spans[0].start().line;
            found.push(Import { path: path.clone(), name: None, glob: true, line });
        }
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                take_apart(tree, path, found);
            }
        }
    }
}
