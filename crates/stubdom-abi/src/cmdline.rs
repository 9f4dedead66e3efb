//! What the toolstack says on the stubdomain's kernel command line.

use core::fmt;

use xen_types::DomId;
use xenstore::XsPath;

/// The word with which the toolstack asks for frames on consoles 1 and 2.
pub const STATE_FRAMES_WORD: &str = "outrigger.state=frames";

/// The word with which the toolstack says that a device of the host may be plugged into the target later, so that QEMU
/// keeps what it needs for one. With a device from the start, the word is not needed.
pub const PCI_WORD: &str = "outrigger.pci=on";

/// The word that says that QEMU's monitor is on a console ([`crate::QmpConsole`]): a stubdomain need not serve it by
/// vchan too.
pub const QMP_CONSOLE_WORD: &str = "outrigger.qmp=console";

/// The word with which the toolstack asks the stubdomain to prepare everything for QEMU and to start it only when
/// [`DmKey::Start`](crate::DmKey::Start) is written. Until then nothing of the target is needed but its domid.
pub const HOLD_WORD: &str = "outrigger.hold=qemu";

/// Whether a kernel command line has a word.
#[must_use]
pub fn has_word(cmdline: &str, word: &str) -> bool {
    cmdline.split_whitespace().any(|each| each == word)
}

/// The guest that a stubdomain serves: the word `outrigger.serves=<domid>:<vm>`.
///
/// Xenstore says the same ([`crate::paths::own_target`], [`crate::paths::vm_link`]), which every toolstack writes. The
/// word spares the agent two journeys to dom0 before QEMU starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serves {
    /// The guest.
    pub target: DomId,
    /// Its `/vm/<uuid>`.
    pub vm: XsPath,
}

impl Serves {
    const KEY: &str = "outrigger.serves=";

    /// Finds the word. Nothing is there when it is wrong in any way: xenstore is asked then.
    #[must_use]
    pub fn of_cmdline(cmdline: &str) -> Option<Self> {
        let value = cmdline.split_whitespace().find_map(|word| word.strip_prefix(Self::KEY))?;
        let (target, vm) = value.split_once(':')?;
        let vm = vm.starts_with("/vm/").then(|| XsPath::new(vm).ok())??;
        Some(Self { target: target.parse().ok()?, vm })
    }
}

impl fmt::Display for Serves {
    /// Writes the word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}:{}", Self::KEY, self.target, self.vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_found_among_others_as_it_was_written() {
        let serves = Serves {
            target: DomId::new(17).unwrap(),
            vm: XsPath::new("/vm/5f2f2a4e-0000-4000-8000-0123456789ab").unwrap(),
        };
        let cmdline = format!("console=hvc0 {serves} quiet\n");
        assert_eq!(Serves::of_cmdline(&cmdline), Some(serves));
    }

    #[test]
    fn half_a_word_is_none() {
        assert!(has_word("quiet outrigger.qmp=console\n", QMP_CONSOLE_WORD));
        assert!(!has_word("quiet outrigger.qmp=consoles x.outrigger.qmp=console", QMP_CONSOLE_WORD));
    }

    #[test]
    fn wrong_words_are_as_good_as_none() {
        for word in [
            "",
            "outrigger.serves=",
            "outrigger.serves=5",
            "outrigger.serves=x:/vm/a",
            "outrigger.serves=5:vm/a",
        ] {
            assert_eq!(Serves::of_cmdline(&format!("quiet {word} ro")), None, "{word}");
        }
        for vm in ["/local/domain/0", "/vm/../x", "/vm/a//b"] {
            assert_eq!(Serves::of_cmdline(&format!("outrigger.serves=5:{vm}")), None, "{vm}");
        }
    }
}
