use core::fmt;

use xenstore::{NodePath, PathError, RelPath, WatchPath, XsPath};

/// A vchan's directory in xenstore: by its whole path, or below this domain's own directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Below `/local/domain/<this domain>`.
    Own(RelPath),
    /// Anywhere.
    Whole(XsPath),
}

impl Place {
    pub(crate) fn child(&self, name: &str) -> Result<Self, PathError> {
        Ok(match self {
            Self::Own(path) => Self::Own(path.join(name)?),
            Self::Whole(path) => Self::Whole(path.join(name)?),
        })
    }

    pub(crate) fn node(&self) -> &dyn NodePath {
        match self {
            Self::Own(path) => path,
            Self::Whole(path) => path,
        }
    }

    pub(crate) fn watched(&self) -> &dyn WatchPath {
        match self {
            Self::Own(path) => path,
            Self::Whole(path) => path,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.node().wire())
    }
}

impl From<RelPath> for Place {
    fn from(path: RelPath) -> Self {
        Self::Own(path)
    }
}

impl From<XsPath> for Place {
    fn from(path: XsPath) -> Self {
        Self::Whole(path)
    }
}
