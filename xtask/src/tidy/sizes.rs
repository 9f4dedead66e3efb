//! Files and functions that are too long to be read at once.

use proc_macro2::Span;
use syn::visit::{self, Visit};

use super::sources::Source;
use super::{Excess, Finding, Kind};

/// Lines of a file.
pub(super) const FILE: usize = 500;
/// Lines of a function, from its first line to its closing brace.
pub(super) const FUNCTION: usize = 70;
/// The same of a function in [`CASES`], where each is a story or a step of one.
pub(super) const CASE: usize = 15;
/// The folder of the end-to-end cases.
const CASES: &str = "vm-tests/src/cases/";

/// Finds files and functions that are too long.
pub(super) fn check(sources: &[Source]) -> Vec<Excess> {
    let mut found = Vec::new();
    for source in sources {
        if source.lines > FILE {
            found.push(Excess {
                kind: Kind::File,
                key: source.path.clone(),
                size: source.lines,
                finding: Finding {
                    place: format!("{}:{}", source.path, FILE + 1),
                    what: format!("the file has {} lines, the limit is {FILE}", source.lines),
                    remedy: "Move a part with one subject into a file of its own.".to_owned(),
                },
            });
        }
        Functions { path: &source.path, within: Vec::new(), found: &mut found }.visit_file(&source.syntax);
    }
    found
}

/// Looks at each function of a file.
struct Functions<'a> {
    path: &'a str,
    /// The names of the modules and types around.
    within: Vec<String>,
    found: &'a mut Vec<Excess>,
}

impl Functions<'_> {
    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = |span: Span| span.start().line;
        let (first, last) = (line(signature.fn_token.span), line(block.brace_token.span.close()));
        let lines = last + 1 - first;
        let limit = if self.path.starts_with(CASES) { CASE } else { FUNCTION };
        if lines <= limit {
            return;
        }
        let name = [self.within.as_slice(), &[signature.ident.to_string()]].concat().join("::");
        self.found.push(Excess {
            kind: Kind::Function,
            key: format!("{} {name}", self.path),
            size: lines,
            finding: Finding {
                place: format!("{}:{first}", self.path),
                what: format!("the function {name} has {lines} lines, the limit is {limit}"),
                remedy: "Move a part into a function whose name says what it does.".to_owned(),
            },
        });
    }

    fn within(&mut self, name: String, what: impl FnOnce(&mut Self)) {
        self.within.push(name);
        what(self);
        self.within.pop();
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let name = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        self.within(name.unwrap_or_else(|| "impl".to_owned()), |this| visit::visit_item_impl(this, item));
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.within(item.ident.to_string(), |this| visit::visit_item_trait(this, item));
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.within(item.ident.to_string(), |this| visit::visit_item_mod(this, item));
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn found(text: &str) -> Vec<String> {
        found_in("a.rs", text)
    }

    fn found_in(path: &str, text: &str) -> Vec<String> {
        check(&fixture(&[(path, text)])).iter().map(|excess| excess.finding.to_string()).collect()
    }

    fn function(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2))
    }

    #[test]
    fn functions_at_the_limit_are_accepted() {
        assert_eq!(found(&function(FUNCTION)), [""; 0]);
    }

    #[test]
    fn long_function_is_found_by_its_first_line() {
        let text = format!("struct S;\nimpl S {{\n{}}}\n", function(FUNCTION + 1));
        let expected = "a.rs:3: the function S::f has 71 lines, the limit is 70\n  \
            Move a part into a function whose name says what it does.";
        assert_eq!(found(&text), [expected]);
    }

    #[test]
    fn cases_are_shorter_than_other_functions() {
        let path = "vm-tests/src/cases/hello.rs";
        assert_eq!(found_in(path, &function(CASE)), [""; 0]);
        assert_eq!(found_in("vm-tests/src/harness/guest.rs", &function(CASE + 1)), [""; 0]);
        let found = found_in(path, &function(CASE + 1));
        assert!(found[0].contains("the function f has 16 lines, the limit is 15"), "{found:?}");
    }

    #[test]
    fn long_file_is_found() {
        assert_eq!(found(&"const _: () = ();\n".repeat(FILE)), [""; 0]);
        let found = found(&"const _: () = ();\n".repeat(FILE + 1));
        assert!(found[0].starts_with("a.rs:501: the file has 501 lines, the limit is 500"), "{found:?}");
    }
}
