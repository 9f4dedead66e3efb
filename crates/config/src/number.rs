/// Why a text is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberError {
    NotANumber,
    TooLarge,
}

/// Reads a whole text as C's `strtol` with base 0 does for libxlu: blanks before, a sign, decimal, hexadecimal
/// with `0x`, octal with `0`; nothing may follow.
pub(crate) fn parse(text: &str) -> Result<i64, NumberError> {
    let rest = text.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    let (negative, digits) = match rest.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, rest.strip_prefix('+').unwrap_or(rest)),
    };
    let (base, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (16, hex),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return Err(NumberError::NotANumber);
    }
    let magnitude = i128::from_str_radix(digits, base).map_err(|_| NumberError::TooLarge)?;
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| NumberError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_strtol_does() {
        for (text, value) in
            [("0", 0), ("12", 12), (" \t-12", -12), ("0x1f", 31), ("017", 15), ("+3", 3), ("00", 0)]
        {
            assert_eq!(parse(text), Ok(value), "{text:?}");
        }
        for text in ["", " ", "-", "0x", "1 ", "08", "1x", "12abc", "0x-1", "--1", "ff"] {
            assert_eq!(parse(text), Err(NumberError::NotANumber), "{text:?}");
        }
        assert_eq!(parse("9223372036854775808"), Err(NumberError::TooLarge));
        assert_eq!(parse(&"9".repeat(200)), Err(NumberError::TooLarge));
        assert_eq!(parse("-9223372036854775808"), Ok(i64::MIN));
    }
}
