use core::fmt;

use xen_types::DomId;

/// The domid and number of a console.
///
/// Xen reuses the domid of a domain that is gone, so only this and the domain's UUID together identify a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsoleId {
    /// The domain that it belongs to.
    pub domid: DomId,
    /// 0 is the primary console, others are secondary ones.
    pub number: u32,
}

impl ConsoleId {
    /// Reads `DOMID.NUMBER`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (domid, number) = text.split_once('.')?;
        let is_plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let leads = number.len() > 1 && number.starts_with('0');
        let number = number.parse().ok().filter(|_| is_plain && !leads)?;
        Some(Self { domid: domid.parse().ok()?, number })
    }
}

impl fmt::Display for ConsoleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.domid, self.number)
    }
}
