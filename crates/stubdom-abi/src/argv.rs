use thiserror::Error;

/// QEMU's arguments, without the program's name, in the bounds that both encodings keep.
///
/// An argument is any bytes but NUL: empty ones, spaces, newlines and non-ASCII survive both encodings. Two
/// encodings exist in xenstore:
/// - `dm-argv`, one key an argument, `001` first (`docs/misc/stubdom.txt`, Xen 4.14 and later);
/// - `dmargs`, one value with the arguments separated by the escape character (0x1b), older.
///
/// ```
/// use stubdom_abi::Argv;
/// let argv = Argv::new(["-machine", "xenfv", ""])?;
/// let keys: Vec<_> = argv.to_keys().collect();
/// assert_eq!(keys[2], ("003".to_owned(), &b""[..]));
/// assert_eq!(Argv::from_keys(keys)?, argv);
/// assert_eq!(argv.to_dmargs()?, b"-machine\x1bxenfv\x1b");
/// # Ok::<(), stubdom_abi::ArgvError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Argv {
    args: Vec<Vec<u8>>,
}

/// Why arguments cannot be handed to the stubdomain, or what it found is not a list of arguments.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ArgvError {
    /// There are no arguments at all.
    #[error("The device model's arguments are missing: both dm-argv and dmargs are empty")]
    Absent,
    /// More arguments than three digits count.
    #[error("The device model has {0} arguments; at most {max} can be passed", max = Argv::MAX_ARGS)]
    TooMany(usize),
    /// One argument is longer than one xenstore value.
    #[error("Argument {index} is {len} bytes long; at most {max} fit into one xenstore value", max = Argv::MAX_ARG_LEN)]
    TooLong {
        /// The argument's number, the first being 1.
        index: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// All arguments together are too long.
    #[error("The arguments exceed {max} bytes in total", max = Argv::MAX_TOTAL)]
    TotalTooLong,
    /// An argument contains NUL, which no program can be given.
    #[error("Argument {0} contains a NUL byte")]
    Nul(usize),
    /// An argument contains the separator of `dmargs`.
    #[error("Argument {0} contains an escape character (0x1b), which separates arguments in dmargs")]
    Separator(usize),
    /// The arguments do not fit in one value.
    #[error("The arguments need {0} bytes as one value of dmargs; at most {max} fit", max = Argv::MAX_DMARGS_LEN)]
    DmargsTooLong(usize),
    /// A key of `dm-argv` is not a number of three digits from 001.
    #[error("dm-argv has the key \"{0}\", which is not an argument's number (001 to 999)")]
    Key(String),
    /// A key of `dm-argv` comes twice, or one is missing.
    #[error("dm-argv has no key {expected:03}, but has {found:03}: the list has a gap")]
    Gap {
        /// The number that should come next.
        expected: usize,
        /// The number that came.
        found: usize,
    },
}

impl Argv {
    /// The most arguments: three digits number them, and the listing of as many keys still fits in one xenstore
    /// message (4096 bytes, `xen/include/public/io/xs_wire.h`).
    pub const MAX_ARGS: usize = 999;
    /// The longest argument in bytes that is ever written: a xenstore message holds 4096 bytes with the path. (One of
    /// more than 2048 needs xenstored: oxenstored refuses it.)
    pub const MAX_ARG_LEN: usize = 4000;
    /// The longest value of `dmargs` in bytes that is written: oxenstored refuses longer ones, whoever writes them
    /// (`quota-maxsize`).
    pub const MAX_DMARGS_LEN: usize = 2048;
    /// All arguments together, in bytes, with one byte for each end.
    pub const MAX_TOTAL: usize = 64 * 1024;
    /// What separates arguments in `dmargs`.
    pub const SEPARATOR: u8 = 0x1b;
    /// The argument that the stubdomain replaces by `fd:3`, the descriptor of the incoming state.
    pub const RESTORE_INCOMING: &str = "$STUBDOM_RESTORE_INCOMING_ARG";

    /// Makes a list of arguments, without the program's name.
    ///
    /// # Errors
    /// When a bound is exceeded or an argument contains NUL. An empty list is a list.
    pub fn new<I, A>(args: I) -> Result<Self, ArgvError>
    where
        I: IntoIterator<Item = A>,
        A: Into<Vec<u8>>,
    {
        let mut list = Self::default();
        let mut total = 0;
        for arg in args {
            list.push_bounded(arg.into(), &mut total)?;
        }
        Ok(list)
    }

    fn push_bounded(&mut self, arg: Vec<u8>, total: &mut usize) -> Result<(), ArgvError> {
        let index = self.args.len() + 1;
        if index > Self::MAX_ARGS {
            return Err(ArgvError::TooMany(index));
        }
        if arg.len() > Self::MAX_ARG_LEN {
            return Err(ArgvError::TooLong { index, len: arg.len() });
        }
        if arg.contains(&0) {
            return Err(ArgvError::Nul(index));
        }
        *total += arg.len() + 1;
        if *total > Self::MAX_TOTAL {
            return Err(ArgvError::TotalTooLong);
        }
        self.args.push(arg);
        Ok(())
    }

    /// The arguments in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.args.iter().map(Vec::as_slice)
    }

    /// How many arguments there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// The arguments themselves.
    #[must_use]
    pub fn into_args(self) -> Vec<Vec<u8>> {
        self.args
    }

    /// The keys below `dm-argv` (`001`…) and their values, to be written in one transaction.
    pub fn to_keys(&self) -> impl ExactSizeIterator<Item = (String, &[u8])> {
        self.args.iter().enumerate().map(|(index, arg)| (argv_key(index + 1), arg.as_slice()))
    }

    /// Reads the keys found below `dm-argv`, in any order.
    ///
    /// # Errors
    /// When there are none, a key is not a number of three digits, one is missing or doubled, or a bound is
    /// exceeded.
    pub fn from_keys<I, K, V>(keys: I) -> Result<Self, ArgvError>
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<str>,
        V: Into<Vec<u8>>,
    {
        let mut found = Vec::new();
        for (key, value) in keys {
            if found.len() == Self::MAX_ARGS {
                return Err(ArgvError::TooMany(found.len() + 1));
            }
            found.push((parse_argv_key(key.as_ref())?, value.into()));
        }
        if found.is_empty() {
            return Err(ArgvError::Absent);
        }
        found.sort_by_key(|(number, _)| *number);
        for (index, (number, _)) in found.iter().enumerate() {
            if *number != index + 1 {
                return Err(ArgvError::Gap { expected: index + 1, found: *number });
            }
        }
        Self::new(found.into_iter().map(|(_, value)| value))
    }

    /// The value of the older key `dmargs`.
    ///
    /// A separator comes before the first argument when that is empty, which keeps it apart from no argument.
    ///
    /// # Errors
    /// When an argument contains the separator, or the value would be longer than [`Self::MAX_DMARGS_LEN`]; the
    /// toolstack then writes `dm-argv` alone.
    pub fn to_dmargs(&self) -> Result<Vec<u8>, ArgvError> {
        if let Some(index) = self.args.iter().position(|arg| arg.contains(&Self::SEPARATOR)) {
            return Err(ArgvError::Separator(index + 1));
        }
        let mut value = Vec::new();
        if self.args.first().is_some_and(Vec::is_empty) {
            value.push(Self::SEPARATOR);
        }
        value.extend(self.args.join(&Self::SEPARATOR));
        if value.len() > Self::MAX_DMARGS_LEN {
            return Err(ArgvError::DmargsTooLong(value.len()));
        }
        Ok(value)
    }

    /// Reads the value of the older key `dmargs`. One separator before the first argument is dropped: some
    /// toolstacks wrote one before every argument.
    ///
    /// # Errors
    /// When the value is empty or a bound is exceeded.
    pub fn from_dmargs(value: &[u8]) -> Result<Self, ArgvError> {
        if value.is_empty() {
            return Err(ArgvError::Absent);
        }
        let value = value.strip_prefix(&[Self::SEPARATOR]).unwrap_or(value);
        Self::new(value.split(|byte| *byte == Self::SEPARATOR))
    }
}

/// The key below `dm-argv` of the argument with this number, the first being 1.
fn argv_key(number: usize) -> String {
    format!("{number:03}")
}

fn parse_argv_key(key: &str) -> Result<usize, ArgvError> {
    let bad =
        || ArgvError::Key(key.chars().take(16).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect());
    if key.len() != 3 || !key.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    match key.parse() {
        Ok(0) | Err(_) => Err(bad()),
        Ok(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spaces_newlines_and_empty_arguments_survive_dmargs() {
        let argv = Argv::new(["", "a b", "", "c\nd", ""]).unwrap();
        assert_eq!(Argv::from_dmargs(&argv.to_dmargs().unwrap()), Ok(argv));
    }

    #[test]
    fn one_empty_argument_is_not_no_argument() {
        let argv = Argv::new([""]).unwrap();
        assert_eq!(argv.to_dmargs().unwrap(), b"\x1b");
        assert_eq!(Argv::from_dmargs(b"\x1b"), Ok(argv));
        assert_eq!(Argv::from_dmargs(b""), Err(ArgvError::Absent));
    }

    #[test]
    fn a_separator_before_every_argument_is_understood() {
        assert_eq!(Argv::from_dmargs(b"\x1b-M\x1bxenfv"), Argv::new(["-M", "xenfv"]));
    }

    #[test]
    fn torn_and_absurd_keys_are_refused() {
        let keys = |names: &[&str]| Argv::from_keys(names.iter().map(|name| (name.to_string(), "x")));
        assert_eq!(keys(&[]), Err(ArgvError::Absent));
        assert_eq!(keys(&["001", "003"]), Err(ArgvError::Gap { expected: 2, found: 3 }));
        assert_eq!(keys(&["001", "001"]), Err(ArgvError::Gap { expected: 2, found: 1 }));
        assert_eq!(keys(&["002", "001"]).map(|argv| argv.len()), Ok(2));
        for bad in ["000", "1", "0001", "+01", "1e2", "", "é1"] {
            assert!(matches!(keys(&[bad]), Err(ArgvError::Key(_))), "{bad:?} was accepted");
        }
    }

    #[test]
    fn every_bound_is_kept() {
        assert_eq!(Argv::new(vec!["x"; 1000]), Err(ArgvError::TooMany(1000)));
        assert_eq!(
            Argv::new([vec![b'x'; Argv::MAX_ARG_LEN + 1]]),
            Err(ArgvError::TooLong { index: 1, len: Argv::MAX_ARG_LEN + 1 })
        );
        assert_eq!(Argv::new(vec![vec![b'x'; 4000]; 20]), Err(ArgvError::TotalTooLong));
        assert_eq!(Argv::new(["a", "b\0"]), Err(ArgvError::Nul(2)));
        assert_eq!(Argv::new(["a\x1b"]).unwrap().to_dmargs(), Err(ArgvError::Separator(1)));
        assert_eq!(
            Argv::new(vec![vec![b'x'; 3000]; 2]).unwrap().to_dmargs(),
            Err(ArgvError::DmargsTooLong(6001))
        );
        for (length, fits) in [(2048, true), (2049, false)] {
            assert_eq!(Argv::new([vec![b'x'; length]]).unwrap().to_dmargs().is_ok(), fits);
        }
    }

    fn args(low: u8) -> impl Strategy<Value = Vec<Vec<u8>>> {
        vec(vec(low..=255_u8, 0..40), 0..60)
    }

    proptest! {
        #[test]
        fn keys_in_any_order_give_the_arguments_back(args in args(1), seed in any::<usize>()) {
            let argv = Argv::new(args).unwrap();
            let mut keys: Vec<_> = argv.to_keys().collect();
            let turn = seed % keys.len().max(1);
            keys.rotate_left(turn);
            match Argv::from_keys(keys) {
                Ok(back) => prop_assert_eq!(back, argv),
                Err(error) => { prop_assert_eq!(error, ArgvError::Absent); prop_assert!(argv.is_empty()); }
            }
        }

        #[test]
        fn dmargs_gives_the_arguments_back(args in args(0x1c)) {
            let argv = Argv::new(args).unwrap();
            if let Ok(value) = argv.to_dmargs() {
                match Argv::from_dmargs(&value) {
                    Ok(back) => prop_assert_eq!(back, argv),
                    Err(error) => { prop_assert_eq!(error, ArgvError::Absent); prop_assert!(argv.is_empty()); }
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(value in vec(any::<u8>(), 0..5000)) {
            if let Ok(argv) = Argv::from_dmargs(&value) {
                prop_assert!(argv.len() <= Argv::MAX_ARGS);
            }
        }
    }
}
