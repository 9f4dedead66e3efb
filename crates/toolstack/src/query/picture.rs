//! Pictures from a stubdomain, read within bounds and encoded again: no byte is passed on unchanged.

use png::{BitDepth, ColorType, Encoder};

use crate::error::Cause;

/// Room for a picture, in bytes: the largest that is accepted, and its header.
pub(super) const ROOM: u64 = 32 << 20;
/// The most pixels of a picture: what fits into that.
const PIXELS: u64 = (ROOM - HEADER as u64) / 3;

/// The header of a portable pixmap has at most this many bytes here.
const HEADER: usize = 64;

/// Takes the picture out of a portable pixmap (`P6`, 8 bits a colour), behind which anything may stand, and encodes it
/// as a PNG. Not every QEMU is built to write PNG itself.
pub(crate) fn redraw(bytes: &[u8]) -> Result<Vec<u8>, Cause> {
    let bad = |why: &dyn std::fmt::Display| Cause::Picture { why: why.to_string() };
    let (width, height, start) = header(bytes).ok_or_else(|| bad(&"it has no PPM header"))?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > PIXELS {
        return Err(bad(&format!("{width} × {height} pixels is zero or more than {PIXELS}")));
    }
    let size = usize::try_from(pixels * 3).map_err(|_| bad(&"it is too large"))?;
    let rgb = bytes.get(start..).and_then(|rest| rest.get(..size)).ok_or_else(|| bad(&"it is truncated"))?;
    let mut png = Vec::new();
    let mut encoder = Encoder::new(&mut png, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| bad(&error))?;
    writer.write_image_data(rgb).map_err(|error| bad(&error))?;
    writer.finish().map_err(|error| bad(&error))?;
    Ok(png)
}

/// Width, height, and where the pixels begin: three numbers after the mark, the last of them 255, then one blank.
fn header(bytes: &[u8]) -> Option<(u32, u32, usize)> {
    let head = bytes.get(..HEADER.min(bytes.len()))?;
    let mut words = head.split(u8::is_ascii_whitespace);
    let mut start = 0;
    let mut word = || {
        let word = words.next()?;
        start += word.len() + 1;
        std::str::from_utf8(word).ok()
    };
    if word()? != "P6" {
        return None;
    }
    let (width, height) = (word()?.parse().ok()?, word()?.parse().ok()?);
    (word()? == "255").then_some((width, height, start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn picture_is_kept_and_what_stands_behind_it_is_not() {
        let mut drawn = b"P6\n2 1\n255\n\x01\x02\x03\x04\x05\x06".to_vec();
        drawn.extend([0xee; 5000]);
        let png = redraw(&drawn).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        assert_eq!(reader.info().size(), (2, 1));
        let mut frame = [0; 6];
        reader.next_frame(&mut frame).unwrap();
        assert_eq!(frame, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn no_picture_a_cut_one_and_an_enormous_one_are_refused() {
        for bytes in [
            &b""[..],
            b"P6",
            b"P5\n1 1\n255\nxxx",
            b"P6\n1 1\n65535\nxxxxxx",
            b"P6\n2 1\n255\nxxx",
            b"P6\n0 1\n255\n",
            b"P6\n99999 99999\n255\nxxx",
            b"P6\n4294967296 1\n255\nxxx",
        ] {
            assert!(matches!(redraw(bytes), Err(Cause::Picture { .. })), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_a_picture(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = redraw(&bytes);
            let _ = redraw(&[b"P6\n", &bytes[..]].concat());
        }
    }
}
