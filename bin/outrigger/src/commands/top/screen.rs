//! The rows on a terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::client::Client;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Text;
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};
use signal_hook::consts::{SIGHUP, SIGTERM};

use super::sample::{Order, Row, Sample, rows};
use super::{HEADINGS, Look, cells};

/// How soon a signal ends it.
const NOTICE: Duration = Duration::from_millis(250);
const KEYS: &str = "q: quit  s: sort";
const WIDTHS: [u16; HEADINGS.len()] = [24, 6, 12, 8, 11, 10, 6];
/// The least of a name that is shown.
const LEAST_NAME: u16 = 8;
/// The columns after the name that a narrow terminal keeps first: a number that is cut is another number.
const FIRST: [usize; HEADINGS.len() - 1] = [3, 5, 1, 4, 2, 6];

/// Shows the guests until a key or a signal ends it, or they were shown as often as asked.
pub(super) fn run(client: &mut Client, delay: Duration, iterations: Option<u64>) -> Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("Cannot receive signals")?;
    }
    // The first answer comes before the screen is cleared, so that an error stays on it.
    let first = Look::take(client)?;
    let mut terminal = ratatui::try_init().context("Cannot use the terminal")?;
    let shown = show(&mut terminal, client, first, &Limits { delay, iterations, ended: &ended });
    ratatui::try_restore().context("Cannot restore the terminal; `reset` does")?;
    shown
}

struct Limits<'a> {
    delay: Duration,
    iterations: Option<u64>,
    ended: &'a AtomicBool,
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    client: &mut Client,
    first: Look,
    limits: &Limits<'_>,
) -> Result<()> {
    let (mut look, mut before): (Look, Option<Sample>) = (first, None);
    let (mut order, mut count) = (Order::Cpu, 1);
    loop {
        let next = Instant::now() + limits.delay;
        loop {
            let shown = rows(before.as_ref(), &look.sample, order);
            terminal.draw(|frame| draw(frame, &look, &shown, order)).context("Cannot draw")?;
            match wait(next, limits.ended)? {
                Asked::Nothing => break,
                Asked::Quit => return Ok(()),
                Asked::Sort => order = order.next(),
                Asked::Redraw => {}
            }
        }
        if limits.iterations.is_some_and(|wanted| count >= wanted) {
            return Ok(());
        }
        count += 1;
        let newer = Look::take(client)?;
        before = Some(std::mem::replace(&mut look, newer).sample);
    }
}

/// What a person wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Quit,
    Sort,
    Redraw,
}

/// Waits for a key until then.
fn wait(until: Instant, ended: &AtomicBool) -> Result<Asked> {
    loop {
        if ended.load(Ordering::Relaxed) {
            return Ok(Asked::Quit);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Asked::Nothing);
        }
        if event::poll(left.min(NOTICE)).context("Cannot read the terminal")? {
            let asked = asked(&event::read().context("Cannot read the terminal")?);
            if asked != Asked::Nothing {
                return Ok(asked);
            }
        }
    }
}

fn asked(event: &Event) -> Asked {
    match event {
        Event::Key(KeyEvent { kind: KeyEventKind::Press, code, modifiers, .. }) => match code {
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Asked::Quit,
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => Asked::Quit,
            KeyCode::Char('s' | 'S') => Asked::Sort,
            _ => Asked::Nothing,
        },
        Event::Resize(..) => Asked::Redraw,
        _ => Asked::Nothing,
    }
}

fn draw(frame: &mut Frame<'_>, look: &Look, rows: &[Row], order: Order) {
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    let headline = format!("{}, sorted by {}", look.headline(), order.word());
    frame.render_widget(Paragraph::new(headline), top);
    frame.render_widget(table(rows, middle.width), middle);
    frame.render_widget(Paragraph::new(KEYS), bottom);
}

/// The columns that fit, in their order, and their widths.
fn fitting(width: u16) -> Vec<(usize, u16)> {
    let mut left = width.saturating_sub(LEAST_NAME);
    let mut shown = Vec::new();
    for column in FIRST {
        // With the space before it.
        let Some(rest) = left.checked_sub(WIDTHS[column] + 1) else { break };
        left = rest;
        shown.push((column, WIDTHS[column]));
    }
    shown.push((0, (LEAST_NAME.min(width) + left).min(WIDTHS[0])));
    shown.sort_unstable();
    shown
}

fn table(rows: &[Row], width: u16) -> Table<'static> {
    let columns = fitting(width);
    let aligned = |heading: &str, text: String| {
        let alignment = if heading.starts_with('>') { Alignment::Right } else { Alignment::Left };
        Cell::from(Text::from(text).alignment(alignment))
    };
    let headings = columns.iter().filter_map(|(column, _)| HEADINGS.get(*column));
    let headings = headings.map(|heading| aligned(heading, heading.trim_start_matches('>').to_owned()));
    let line = |row: &Row| {
        let mut texts = cells(row);
        if row.stubdomain_of.is_some() {
            texts[0].insert_str(0, "  ");
        }
        let cell =
            |(column, _): &(usize, u16)| Some(aligned(HEADINGS.get(*column)?, texts.get(*column)?.clone()));
        TableRow::new(columns.iter().filter_map(cell))
    };
    let header =
        TableRow::new(headings.collect::<Vec<_>>()).style(Style::new().add_modifier(Modifier::REVERSED));
    let widths: Vec<Constraint> = columns.iter().map(|(_, width)| Constraint::Length(*width)).collect();
    Table::new(rows.iter().map(line).collect::<Vec<_>>(), widths).header(header)
}

#[cfg(test)]
mod tests {
    use api::types::{HostInfo, State};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use xen_types::{DomId, KiB};

    use super::*;

    fn row(name: &str, domid: u16, of: Option<&str>) -> Row {
        Row {
            name: name.to_owned(),
            domid: DomId::new(domid).unwrap(),
            stubdomain_of: of.map(str::to_owned),
            status: of.is_none().then_some(State::Running),
            cpu_percent: Some(12.5),
            cpu_time_ns: 3_400_000_000,
            memory_kib: KiB::from_mib(64),
            vcpus: of.is_none().then_some(2),
        }
    }

    fn look() -> Look {
        let host = HostInfo {
            version: String::new(),
            xen_version: String::new(),
            xen_caps: String::new(),
            virt_caps: String::new(),
            total_memory_kib: KiB::from_mib(4096),
            free_memory_kib: KiB::from_mib(1024),
            cpus: 2,
            image: String::new(),
            image_present: true,
            guests: 1,
        };
        Look { host, sample: Sample { at: Instant::now(), guests: Vec::new() } }
    }

    #[test]
    fn stubdomains_are_below_their_guests() {
        let look = look();
        let mut terminal = Terminal::new(TestBackend::new(90, 5)).unwrap();
        let rows = [row("hello", 1, None), row("hello-dm", 2, Some("hello"))];
        terminal.draw(|frame| draw(frame, &look, &rows, Order::Memory)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines: Vec<String> = (0..5)
            .map(|y| (0..90).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned())
            .collect();
        assert_eq!(lines[0], "0 guests, 2 CPUs, 1024 of 4096 MiB free, sorted by memory");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines[2]), ["hello", "1", "running", "12.5", "3.4", "64", "2"]);
        assert!(lines[3].starts_with("  hello-dm"), "{lines:?}");
        assert_eq!(lines[4], KEYS);
    }

    #[test]
    fn small_terminals_show_what_fits() {
        for (width, height) in [(20, 10), (20, 1), (1, 1), (3, 2), (0, 0), (200, 3)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            let rows = [row("a-guest-with-a-long-name-that-is-cut", 1, None), row("x", 2, Some("hello"))];
            terminal.draw(|frame| draw(frame, &look(), &rows, Order::Cpu)).unwrap();
            if (width, height) == (20, 10) {
                let buffer = terminal.backend().buffer();
                let line: String = (0..20).map(|x| buffer[(x, 2)].symbol()).collect();
                assert_eq!(line, "a-guest-wit     12.5");
            }
        }
        let columns = |width| fitting(width).into_iter().map(|(column, _)| column).collect::<Vec<_>>();
        assert_eq!((columns(20), columns(30), columns(90)), (vec![0, 3], vec![0, 3, 5], (0..7).collect()));
        assert_eq!(fitting(90)[0], (0, 24));
    }

    #[test]
    fn keys_quit_and_sort() {
        let key = |code, modifiers| asked(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Asked::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Asked::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), Asked::Nothing);
        assert_eq!(key(KeyCode::Char('s'), KeyModifiers::NONE), Asked::Sort);
        assert_eq!(asked(&Event::Resize(1, 1)), Asked::Redraw);
    }
}
