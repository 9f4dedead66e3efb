//! The two programs of Xen that keep xenstore in dom0.

use std::str::FromStr;

/// Which of them runs in dom0. It is part of what a snapshot belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Xenstored {
    /// `xenstored`, in C.
    C,
    /// `oxenstored`, in OCaml: what Debian's init script starts, and so what users have.
    #[default]
    OCaml,
}

impl Xenstored {
    /// The environment variable that holds the word: of the caller where no option does, and of everything in dom0.
    pub const VARIABLE: &'static str = "OUTRIGGER_XENSTORED";

    /// The word for it in options and in [`VARIABLE`](Self::VARIABLE).
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::OCaml => "ocaml",
        }
    }

    /// The name of the program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::C => "xenstored",
            Self::OCaml => "oxenstored",
        }
    }

    /// What dom0's init learns by the kernel's command line.
    pub(crate) fn kernel_word(self) -> String {
        format!("{}={}", Self::VARIABLE, self.word())
    }
}

impl FromStr for Xenstored {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::C, Self::OCaml].into_iter().find(|one| one.word() == text).ok_or("c or ocaml is expected")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_read_back() {
        for one in [Xenstored::C, Xenstored::OCaml] {
            assert_eq!(one.word().parse(), Ok(one));
        }
        assert!("oxenstored".parse::<Xenstored>().is_err());
    }
}
