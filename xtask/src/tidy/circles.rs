//! Files of one crate that use each other, so that none can be read or changed alone.
//!
//! A file uses another one when a path of its code means something that the other one declares; re-exports are followed
//! to the declaration. Two things do not count: what tests use, and what a module and those below it use of each other,
//! because a module is made of those below it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::modules::{Tree, imports};
use super::sources::{Source, is_test};
use super::{Excess, Finding, Kind};

/// For each file the files that it uses, with the line of the first use.
type Uses = BTreeMap<usize, BTreeMap<usize, usize>>;

/// Finds circles.
pub(super) fn check(sources: &[Source]) -> Vec<Excess> {
    let trees = Tree::all(sources);
    trees
        .iter()
        .flat_map(|tree| circles(&uses(tree, sources)).into_iter().map(|c| excess(&c, sources)))
        .collect()
}

/// A circle: all its files, and a shortest way around, each file with the line that uses the next one.
#[derive(Debug)]
struct Circle {
    files: BTreeSet<usize>,
    way: Vec<(usize, usize)>,
}

fn excess(circle: &Circle, sources: &[Source]) -> Excess {
    let files: Vec<&str> = circle.files.iter().map(|file| sources[*file].path.as_str()).collect();
    let steps: Vec<String> =
        circle.way.iter().map(|(file, line)| format!("{}:{line}", sources[*file].path)).collect();
    let what = if circle.files.len() == circle.way.len() {
        format!("{} files use each other: {}", files.len(), steps.join(", "))
    } else {
        let (files, steps) = (files.join(", "), steps.join(", "));
        format!("{} files use each other: {files}; the shortest circle is {steps}", circle.files.len())
    };
    Excess {
        kind: Kind::Circle,
        key: files.join(" "),
        size: files.len(),
        finding: Finding {
            place: steps.first().cloned().unwrap_or_default(),
            what,
            remedy: "Move what several of them need into a file that uses none of them.".to_owned(),
        },
    }
}

/// Finds out which file uses which.
fn uses(tree: &Tree, sources: &[Source]) -> Uses {
    let mut uses = Uses::new();
    // Inline modules are met within their file.
    let heads = tree.0.iter().enumerate().filter(|(_, module)| {
        !module.test && module.parent.is_none_or(|parent| tree.0[parent].file != module.file)
    });
    for (number, module) in heads {
        let mut paths = Paths { tree, module: number, uses: BTreeMap::new() };
        paths.visit_file(&sources[module.file].syntax);
        uses.insert(module.file, paths.uses);
    }
    uses
}

/// Looks at the paths of one file.
struct Paths<'a> {
    tree: &'a Tree,
    /// The module whose code is looked at.
    module: usize,
    uses: BTreeMap<usize, usize>,
}

impl Paths<'_> {
    fn used(&mut self, path: &[String], glob: bool, line: usize) {
        let Some(meaning) = self.tree.resolve(self.module, path) else { return };
        let file = self.tree.0[meaning.module].file;
        if file != self.tree.0[self.module].file && (meaning.item || glob) && !self.related(file) {
            self.uses.entry(file).or_insert(line);
        }
    }

    /// Whether a file has a module around the current one, or below the current file.
    fn related(&self, file: usize) -> bool {
        let own = self.tree.0[self.module].file;
        self.is_within(own, file) || self.is_within(file, own)
    }

    fn is_within(&self, inner: usize, outer: usize) -> bool {
        let mut at = self.tree.0.iter().position(|module| module.file == inner);
        while let Some(module) = at {
            if self.tree.0[module].file == outer {
                return true;
            }
            at = self.tree.0[module].parent;
        }
        false
    }

    /// Looks for paths of several parts in what is given to a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut line, mut colons) = (Vec::new(), 0, 0);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path, line);
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path, line);
                    colons = 0;
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end(&mut path, line);
                    colons = 0;
                }
            }
        }
        self.end(&mut path, line);
    }

    fn end(&mut self, path: &mut Vec<String>, line: usize) {
        if path.len() > 1 {
            self.used(path, false, line);
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_none() || is_test(&item.attrs) {
            return;
        }
        let inner = self.tree.0[self.module].children.get(&item.ident.to_string()).copied();
        let outer = self.module;
        self.module = inner.unwrap_or(outer);
        visit::visit_item_mod(self, item);
        self.module = outer;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if is_test(&item.attrs) {
            return;
        }
        for import in imports(item) {
            self.used(&import.path, import.glob, import.line);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let names: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
            let line = path.segments.first().map_or(0, |part| part.ident.span().start().line);
            self.used(&names, false, line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }

    fn visit_meta_list(&mut self, item: &'ast syn::MetaList) {
        self.tokens(item.tokens.clone());
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_test(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }
}

/// The sets of files of which each can be reached from each other one.
fn circles(uses: &Uses) -> Vec<Circle> {
    let reached: BTreeMap<usize, BTreeSet<usize>> =
        uses.keys().map(|file| (*file, reach(uses, *file))).collect();
    let reaches = |from: usize, to: usize| reached.get(&from).is_some_and(|files| files.contains(&to));
    let mut found: Vec<Circle> = Vec::new();
    for &file in uses.keys() {
        if !reaches(file, file) || found.iter().any(|circle| circle.files.contains(&file)) {
            continue;
        }
        let files: BTreeSet<usize> =
            uses.keys().copied().filter(|other| reaches(file, *other) && reaches(*other, file)).collect();
        let ways = files.iter().filter_map(|file| way_around(uses, *file));
        let way = ways.min_by_key(Vec::len).unwrap_or_default();
        found.push(Circle { files, way });
    }
    found
}

/// Every file that a file uses, if through others too.
fn reach(uses: &Uses, from: usize) -> BTreeSet<usize> {
    let (mut reached, mut todo) = (BTreeSet::new(), vec![from]);
    while let Some(file) = todo.pop() {
        let next = uses.get(&file).into_iter().flat_map(BTreeMap::keys);
        todo.extend(next.filter(|file| reached.insert(**file)));
    }
    reached
}

/// The shortest way from a file back to itself.
fn way_around(uses: &Uses, start: usize) -> Option<Vec<(usize, usize)>> {
    let mut todo = VecDeque::from([(start, Vec::new())]);
    let mut seen = BTreeSet::new();
    while let Some((file, way)) = todo.pop_front() {
        for (&next, &line) in uses.get(&file).into_iter().flatten() {
            let mut way = way.clone();
            way.push((file, line));
            if next == start {
                return Some(way);
            }
            if seen.insert(next) {
                todo.push_back((next, way));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        check(&fixture(files)).into_iter().map(|excess| excess.finding.what).collect()
    }

    #[test]
    fn files_that_use_each_other_are_found_with_their_lines() {
        let files = [
            ("c/src/lib.rs", "mod a;\nmod b;\n"),
            ("c/src/a.rs", "use crate::b::B;\npub struct A;\n"),
            ("c/src/b.rs", "pub struct B;\n\nfn f() { super::a::A }\n"),
        ];
        assert_eq!(found(&files), ["2 files use each other: c/src/a.rs:1, c/src/b.rs:3"]);
        let [excess] = &check(&fixture(&files))[..] else { panic!("there is one circle") };
        assert_eq!((excess.key.as_str(), excess.size), ("c/src/a.rs c/src/b.rs", 2));
    }

    #[test]
    fn module_and_those_below_it_are_in_no_circle() {
        let files = |text| {
            [
                ("c/src/lib.rs", "mod a;\nuse a::deep::Deep;\npub struct Error;\n"),
                ("c/src/a.rs", text),
                ("c/src/a/deep.rs", "use super::A;\npub struct Deep(crate::Error);\n"),
                ("c/src/a/side.rs", "pub struct Side(super::deep::Deep);\n"),
            ]
        };
        assert_eq!(found(&files("mod deep;\nmod side;\npub struct A(side::Side);\n")), [""; 0]);
        assert_eq!(found(&files("mod deep;\npub use deep::*;\npub struct A;\n")), [""; 0]);
    }

    #[test]
    fn exports_are_followed_to_the_declaration() {
        let files = [
            ("c/src/main.rs", "mod a;\nmod b;\nmod c;\n"),
            ("c/src/a/mod.rs", "mod deep;\npub use deep::*;\n"),
            ("c/src/a/deep.rs", "pub struct Deep;\nfn f() { println!(\"{}\", crate::c::g()) }\n"),
            ("c/src/b.rs", "pub use crate::a::Deep as Renamed;\n"),
            ("c/src/c.rs", "use crate::b;\npub fn g() -> b::Renamed {}\n"),
        ];
        assert_eq!(found(&files), ["2 files use each other: c/src/a/deep.rs:2, c/src/c.rs:2"]);
    }

    #[test]
    fn tests_and_other_crates_do_not_count() {
        let files = [
            ("c/src/lib.rs", "mod a;\nmod b;\nuse std::fs;\nfn f() { fs::read(a::A); }\n"),
            ("c/src/a.rs", "pub struct A;\n#[cfg(test)]\nmod tests { use crate::b::B; }\n"),
            ("c/src/b.rs", "use crate::a::A;\npub struct B;\n#[cfg(all(test, x))]\nmod tests;\n"),
            ("c/src/b/tests.rs", "use super::*;\nuse crate::f;\n"),
        ];
        assert_eq!(found(&files), [""; 0]);
    }

    #[test]
    fn long_circle_is_found_with_a_shortest_one() {
        let files = [
            ("c/src/lib.rs", "mod a; mod b; mod c; mod d;"),
            ("c/src/a.rs", "use crate::b::B; pub struct A;"),
            ("c/src/b.rs", "use crate::{c::C, d::D}; pub struct B;"),
            ("c/src/c.rs", "use crate::a::A; pub struct C;"),
            ("c/src/d.rs", "use crate::b::B; pub struct D;"),
        ];
        let expected = "4 files use each other: c/src/a.rs, c/src/b.rs, c/src/c.rs, c/src/d.rs; \
            the shortest circle is c/src/b.rs:1, c/src/d.rs:1";
        assert_eq!(found(&files), [expected]);
    }
}
