//! Pictures from a stubdomain, read within bounds and drawn anew: no byte of theirs goes on as it came.

use png::{BitDepth, ColorType, Decoder, Encoder, Limits, Transformations};

use crate::error::Cause;

/// The most pixels of a picture.
const PIXELS: u64 = 32 << 20;
/// What the decoder may take beside the picture itself, in bytes.
const MEMORY: usize = 160 << 20;

/// Decodes a PNG, behind which anything may stand, and encodes its picture as RGB of 8 bits.
pub(crate) fn redraw(bytes: &[u8]) -> Result<Vec<u8>, Cause> {
    let bad = |why: &dyn std::fmt::Display| Cause::Picture { why: why.to_string() };
    let mut decoder = Decoder::new_with_limits(std::io::Cursor::new(bytes), Limits { bytes: MEMORY });
    decoder.set_transformations(Transformations::normalize_to_color8());
    decoder.ignore_checksums(false);
    let mut reader = decoder.read_info().map_err(|error| bad(&error))?;
    let (width, height) = reader.info().size();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > PIXELS {
        return Err(bad(&format!("{width} times {height} pixels are none or more than {PIXELS}")));
    }
    let size = reader.output_buffer_size().ok_or_else(|| bad(&"it is too large"))?;
    let mut frame = vec![0; size];
    let info = reader.next_frame(&mut frame).map_err(|error| bad(&error))?;
    let channels = info.color_type.samples();
    let rgb = match info.color_type {
        ColorType::Rgb => frame,
        ColorType::Rgba => frame.chunks_exact(channels).flat_map(|p| p.iter().take(3).copied()).collect(),
        ColorType::Grayscale | ColorType::GrayscaleAlpha => {
            frame.chunks_exact(channels).flat_map(|p| p.first().map_or([0; 3], |gray| [*gray; 3])).collect()
        }
        ColorType::Indexed => return Err(bad(&"its colours were not looked up")),
    };
    let mut png = Vec::new();
    let mut encoder = Encoder::new(&mut png, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| bad(&error))?;
    writer.write_image_data(&rgb).map_err(|error| bad(&error))?;
    writer.finish().map_err(|error| bad(&error))?;
    Ok(png)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(width: u32, height: u32, color: ColorType, data: &[u8]) -> Vec<u8> {
        let mut png = Vec::new();
        let mut encoder = Encoder::new(&mut png, width, height);
        encoder.set_color(color);
        encoder.set_depth(BitDepth::Eight);
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        png
    }

    fn pixels(png: &[u8]) -> Vec<u8> {
        let mut reader = Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut frame = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut frame).unwrap();
        frame
    }

    #[test]
    fn picture_is_kept_and_what_stands_behind_it_is_not() {
        let rgb = [1, 2, 3, 4, 5, 6];
        let mut drawn = encode(2, 1, ColorType::Rgb, &rgb);
        drawn.extend([0xee; 5000]);
        assert_eq!(pixels(&redraw(&drawn).unwrap()), rgb);
        let drawn = encode(1, 1, ColorType::Rgba, &[7, 8, 9, 255]);
        assert_eq!(pixels(&redraw(&drawn).unwrap()), [7, 8, 9]);
        let drawn = encode(1, 1, ColorType::Grayscale, &[7]);
        assert_eq!(pixels(&redraw(&drawn).unwrap()), [7, 7, 7]);
    }

    #[test]
    fn no_picture_and_an_enormous_one_are_refused() {
        assert!(matches!(redraw(&[0; 4096]), Err(Cause::Picture { .. })));
        let mut drawn = encode(2, 1, ColorType::Rgb, &[0; 6]);
        // The width in the header, with a checksum that is wrong then: either is a reason.
        drawn[16..20].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
        assert!(matches!(redraw(&drawn), Err(Cause::Picture { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_a_picture(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), from in 8_usize..40) {
            let _ = redraw(&bytes);
            let mut drawn = encode(2, 1, ColorType::Rgb, &[0; 6]);
            drawn.truncate(from);
            drawn.append(&mut bytes);
            let _ = redraw(&drawn);
        }
    }
}
