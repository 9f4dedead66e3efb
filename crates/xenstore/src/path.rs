use core::fmt;
use core::str::FromStr;

use thiserror::Error;
use xen_types::DomId;

/// The longest absolute path in bytes (`XENSTORE_ABS_PATH_MAX`, `xen/include/public/io/xs_wire.h`).
pub const ABS_PATH_MAX: usize = 3072;
/// The longest relative path in bytes (`XENSTORE_REL_PATH_MAX`, `xen/include/public/io/xs_wire.h`).
///
/// xenstored also applies it to what follows `/local/domain/<domid>/` in an absolute path, and to every absolute
/// path outside of a domain's directory.
pub const REL_PATH_MAX: usize = 2048;

/// An absolute path in xenstore that is well formed: `/`, or components that each follow one slash.
///
/// Components have ASCII letters, digits and `-_@` (`docs/misc/xenstore.txt`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XsPath(String);

/// A path without a leading slash; xenstored reads it from `/local/domain/<domid of the caller>` on.
///
/// A domain uses it to reach its own directory without knowing its number: `target`, `device/vif/0/mac`. A client
/// on xenstored's own socket counts as domain 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(String);

impl XsPath {
    /// Checks a text and takes it as an absolute path.
    ///
    /// # Errors
    /// When the text is not an absolute path that xenstored would take.
    pub fn new(text: impl Into<String>) -> Result<Self, PathError> {
        let text = text.into();
        if !text.starts_with('/') {
            return Err(PathError::NotAbsolute(shown(&text)));
        }
        if text.len() > 1 {
            check_components(&text[1..], &text)?;
        }
        // What is after a domain's own directory counts as if it were relative.
        let limit = domain_prefix_len(&text).map_or(REL_PATH_MAX, |prefix| prefix + REL_PATH_MAX);
        check_length(&text, limit.min(ABS_PATH_MAX))?;
        Ok(Self(text))
    }

    /// The root, `/`.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// A domain's own directory, `/local/domain/<domid>`.
    #[must_use]
    pub fn domain(domid: DomId) -> Self {
        Self(format!("/local/domain/{domid}"))
    }

    /// The path of a node below this one; `below` is one component or several with slashes between.
    ///
    /// # Errors
    /// When `below` is empty, has characters that a path may not have, or makes the path too long.
    pub fn join(&self, below: impl fmt::Display) -> Result<Self, PathError> {
        let below = below.to_string();
        if below.is_empty() {
            return Err(PathError::Empty);
        }
        if self.is_root() { Self::new(format!("/{below}")) } else { Self::new(format!("{}/{below}", self.0)) }
    }

    /// The path of the node that holds this one, or nothing for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.rfind('/').unwrap_or(0);
        Some(if cut == 0 { Self::root() } else { Self(self.0[..cut].to_owned()) })
    }

    /// The last component; the root has none.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        if self.is_root() { None } else { self.0.rsplit('/').next() }
    }

    /// The components from the root down; the root has none.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|component| !component.is_empty())
    }

    /// What follows `ancestor` and a slash; empty when both are the same; nothing when this is not below it.
    #[must_use]
    pub fn strip_prefix(&self, ancestor: &Self) -> Option<&str> {
        if ancestor.is_root() {
            return Some(&self.0[1..]);
        }
        let rest = self.0.strip_prefix(ancestor.as_str())?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }

    /// Whether this is `ancestor` itself or a node below it, which is when a watch on `ancestor` fires.
    #[must_use]
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        self.strip_prefix(ancestor).is_some()
    }

    /// Whether this is `/`.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// The text of the path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RelPath {
    /// Checks a text and takes it as a relative path.
    ///
    /// # Errors
    /// When the text is not a relative path that xenstored would take.
    pub fn new(text: impl Into<String>) -> Result<Self, PathError> {
        let text = text.into();
        if text.starts_with('/') {
            return Err(PathError::NotRelative(shown(&text)));
        }
        if text.starts_with('@') {
            return Err(PathError::BadCharacter { path: shown(&text), character: '@' });
        }
        check_components(&text, &text)?;
        check_length(&text, REL_PATH_MAX)?;
        Ok(Self(text))
    }

    /// The path of a node below this one; `below` is one component or several with slashes between.
    ///
    /// # Errors
    /// When `below` is empty, has characters that a path may not have, or makes the path too long.
    pub fn join(&self, below: impl fmt::Display) -> Result<Self, PathError> {
        let below = below.to_string();
        if below.is_empty() { Err(PathError::Empty) } else { Self::new(format!("{}/{below}", self.0)) }
    }

    /// The absolute path that a domain means by this one.
    ///
    /// # Errors
    /// When the absolute path is too long.
    pub fn of_domain(&self, domid: DomId) -> Result<XsPath, PathError> {
        XsPath::domain(domid).join(&self.0)
    }

    /// The text of the path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How many bytes `/local/domain/<number>/` takes at the start of a path that has it.
fn domain_prefix_len(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("/local/domain/")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let ends = (1..=5).contains(&digits) && rest.as_bytes().get(digits) == Some(&b'/');
    ends.then_some("/local/domain/".len() + digits + 1)
}

fn check_components(components: &str, whole: &str) -> Result<(), PathError> {
    for component in components.split('/') {
        if component.is_empty() {
            let error =
                if whole.is_empty() { PathError::Empty } else { PathError::EmptyComponent(shown(whole)) };
            return Err(error);
        }
        if let Some(character) = component.chars().find(|c| !is_allowed(*c)) {
            return Err(PathError::BadCharacter { path: shown(whole), character });
        }
    }
    Ok(())
}

fn check_length(text: &str, limit: usize) -> Result<(), PathError> {
    if text.len() > limit {
        return Err(PathError::TooLong { path: shown(text), length: text.len(), limit });
    }
    Ok(())
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '@')
}

/// A text cut to what a message can hold.
pub(crate) fn shown(text: &str) -> String {
    const LIMIT: usize = 96;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(LIMIT).collect();
    cut.push('…');
    cut
}

/// Why a text is not a path in xenstore.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// There is no text.
    #[error("Empty xenstore path")]
    Empty,
    /// An absolute path was needed.
    #[error("Xenstore path \"{0}\" does not start with a slash")]
    NotAbsolute(String),
    /// A relative path was needed.
    #[error("Xenstore path \"{0}\" is absolute, but must be relative to the domain's directory")]
    NotRelative(String),
    /// Two slashes follow each other, or the last character is a slash.
    #[error("Xenstore path \"{0}\" has a doubled or a trailing slash")]
    EmptyComponent(String),
    /// xenstored takes only ASCII letters, digits and `-/_@`.
    #[error("Xenstore path \"{path}\" has {character:?}; only ASCII letters, digits and -/_@ are allowed")]
    BadCharacter {
        /// The path, cut when it is long.
        path: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// The path has more bytes than xenstored takes.
    #[error("Xenstore path \"{path}\" has {length} bytes; at most {limit} are allowed")]
    TooLong {
        /// The path, cut.
        path: String,
        /// Its length in bytes.
        length: usize,
        /// The most that is allowed, in bytes.
        limit: usize,
    },
}

macro_rules! text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = PathError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = PathError;

            fn try_from(text: &str) -> Result<Self, Self::Error> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}
text!(XsPath);
text!(RelPath);

mod sealed {
    /// Keeps [`super::NodePath`] and [`super::WatchPath`] for checked paths.
    pub trait Sealed {}
    impl Sealed for super::XsPath {}
    impl Sealed for super::RelPath {}
    impl Sealed for super::SpecialWatch {}
    impl Sealed for super::WatchedPath {}
    impl<T: Sealed + ?Sized> Sealed for &T {}
}

/// A checked path of a node: an [`XsPath`] or a [`RelPath`].
pub trait NodePath: sealed::Sealed {
    /// The text that goes over the wire.
    fn wire(&self) -> &str;
}

impl NodePath for XsPath {
    fn wire(&self) -> &str {
        &self.0
    }
}

impl NodePath for RelPath {
    fn wire(&self) -> &str {
        &self.0
    }
}

impl<T: NodePath + ?Sized> NodePath for &T {
    fn wire(&self) -> &str {
        (**self).wire()
    }
}

/// The events that xenstored invents, which can be watched like nodes (`docs/misc/xenstore.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpecialWatch {
    /// `@introduceDomain`: a domain was introduced to xenstored.
    IntroduceDomain,
    /// `@releaseDomain`: a domain was released, destroyed, has crashed or was shut down.
    ReleaseDomain,
}

impl SpecialWatch {
    /// The text that goes over the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IntroduceDomain => "@introduceDomain",
            Self::ReleaseDomain => "@releaseDomain",
        }
    }
}

impl fmt::Display for SpecialWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What can be watched: a node's path or a [`SpecialWatch`].
pub trait WatchPath: sealed::Sealed {
    /// The text that goes over the wire.
    fn watch_wire(&self) -> &str;
}

impl WatchPath for SpecialWatch {
    fn watch_wire(&self) -> &str {
        self.as_str()
    }
}

impl WatchPath for XsPath {
    fn watch_wire(&self) -> &str {
        &self.0
    }
}

impl WatchPath for RelPath {
    fn watch_wire(&self) -> &str {
        &self.0
    }
}

/// The text of a path that is watched.
#[derive(Clone, Debug)]
pub(crate) struct WatchedPath(String);

impl WatchedPath {
    pub(crate) fn of(path: &dyn WatchPath) -> Self {
        Self(path.watch_wire().to_owned())
    }
}

impl WatchPath for WatchedPath {
    fn watch_wire(&self) -> &str {
        &self.0
    }
}

impl<T: WatchPath + ?Sized> WatchPath for &T {
    fn watch_wire(&self) -> &str {
        (**self).watch_wire()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), PathError> {
        XsPath::new(text).map(|path| assert_eq!(path.as_str(), text))
    }

    #[test]
    fn well_formed_paths_are_taken() {
        for good in ["/", "/a", "/local/domain/0/backend/vbd/3/51712", "/vm/0-1_2@3"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        assert_eq!(check(""), Err(PathError::NotAbsolute(String::new())));
        assert_eq!(check("a"), Err(PathError::NotAbsolute("a".into())));
        assert_eq!(check("/a/"), Err(PathError::EmptyComponent("/a/".into())));
        assert_eq!(check("//a"), Err(PathError::EmptyComponent("//a".into())));
        assert_eq!(check("/a b"), Err(PathError::BadCharacter { path: "/a b".into(), character: ' ' }));
        assert_eq!(check("/a\0b"), Err(PathError::BadCharacter { path: "/a\0b".into(), character: '\0' }));
        assert!(check("/a.b").is_err(), "xenstored refuses a dot");
    }

    #[test]
    fn length_counts_from_the_domains_directory() {
        let outside = format!("/{}", "x".repeat(REL_PATH_MAX - 1));
        assert!(check(&outside).is_ok());
        assert!(check(&format!("{outside}x")).is_err());
        let inside = format!("/local/domain/12/{}", "x".repeat(REL_PATH_MAX));
        assert!(check(&inside).is_ok());
        assert!(check(&format!("{inside}x")).is_err());
    }

    #[test]
    fn join_and_parent_undo_each_other() {
        let domain = XsPath::domain(DomId::new(3).unwrap());
        let node = domain.join("device").unwrap().join(0).unwrap();
        assert_eq!(node.as_str(), "/local/domain/3/device/0");
        assert_eq!(node.parent().unwrap().parent(), Some(domain.clone()));
        assert_eq!(XsPath::root().join("a").unwrap().parent(), Some(XsPath::root()));
        assert_eq!(XsPath::root().parent(), None);
        assert_eq!(node.file_name(), Some("0"));
        assert_eq!(node.strip_prefix(&domain), Some("device/0"));
        assert_eq!(node.strip_prefix(&XsPath::root()), Some("local/domain/3/device/0"));
        assert!(!XsPath::new("/ab").unwrap().starts_with(&XsPath::new("/a").unwrap()));
        assert_eq!(node.components().count(), 5);
    }

    #[test]
    fn relative_paths_become_the_domains() {
        let path = RelPath::new("device/vif/0/mac").unwrap();
        assert_eq!(path.of_domain(DomId::DOM0).unwrap().as_str(), "/local/domain/0/device/vif/0/mac");
        for bad in ["", "/a", "a/", "a//b", "@releaseDomain"] {
            assert!(RelPath::new(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
