//! Pictures of guests' screens.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use anyhow::{Result, ensure};

use super::command::outrigger;
use super::guest::unused;

/// Rows and columns of a character in text mode.
const CHARACTER: (u32, u32) = (16, 9);
/// The screen in text mode: 80 columns, 25 rows.
const SCREEN: (u32, u32) = (80 * CHARACTER.1, 25 * CHARACTER.0);

/// A picture: width, height, and three bytes a pixel.
struct Picture {
    size: (u32, u32),
    rgb: Vec<u8>,
}

impl Picture {
    fn read(path: &Path) -> Result<Self> {
        let mut reader = png::Decoder::new(BufReader::new(File::open(path)?)).read_info()?;
        ensure!(reader.info().color_type == png::ColorType::Rgb, "{:?}", reader.info());
        let size = reader.info().size();
        let mut rgb = vec![0; size.0 as usize * size.1 as usize * 3];
        reader.next_frame(&mut rgb)?;
        Ok(Self { size, rgb })
    }

    /// How many pixels of a row of characters have a colour.
    fn count(&self, row: u32, colour: [u8; 3]) -> usize {
        let line = self.size.0 as usize * 3 * CHARACTER.0 as usize;
        self.rgb
            .chunks_exact(line)
            .nth(row as usize)
            .map_or(0, |lines| lines.chunks_exact(3).filter(|pixel| **pixel == colour).count())
    }
}

/// Fails unless the guest's screen shows what `disc.S` draws.
pub(crate) fn shows_what_disc_draws(guest: &str) -> Result<()> {
    let path = unused("screen.png")?;
    outrigger(&["screenshot", guest, &path.to_string_lossy()])?.good()?;
    let picture = Picture::read(&path)?;
    ensure!(picture.size == SCREEN, "the picture has {:?} pixels", picture.size);
    let whole = (SCREEN.0 * CHARACTER.0) as usize;
    for (row, colour) in [(4, [168, 0, 0]), (6, [0, 168, 0]), (20, [0, 0, 0])] {
        ensure!(picture.count(row, colour) == whole, "{} pixels of row {row}", picture.count(row, colour));
    }
    // A text of 21 letters.
    let grey = picture.count(5, [168, 168, 168]);
    ensure!((400..2000).contains(&grey), "{grey} pixels of the text");
    Ok(fs::remove_file(path)?)
}
