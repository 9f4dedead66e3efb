/// A text in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(String);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn fits(&self, text: &str) -> bool {
        Self::matches(&self.0, text)
    }

    /// Whether a text fits a pattern. Each star takes the first place where what follows it fits, so the cost is at
    /// most pattern times text.
    pub(super) fn matches(pattern: &str, text: &str) -> bool {
        let mut parts = pattern.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let mut last = None;
        for part in parts {
            if let Some(middle) = last.replace(part) {
                match rest.split_once(middle) {
                    Some((_, behind)) => rest = behind,
                    None => return false,
                }
            }
        }
        last.map_or(rest.is_empty(), |last| rest.ends_with(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_anything() {
        for (pattern, text, fits) in [
            ("stop", "stop", true),
            ("stop", "stopp", false),
            ("query-*", "query-status", true),
            ("query-*", "query", false),
            ("*", "", true),
            ("*-add", "blockdev-add", true),
            ("*-add", "blockdev-add-", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
            ("*fd-*", "add-fd-x", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(Pattern::matches(pattern, text), fits, "{pattern} {text}");
        }
    }
}
