use std::fs;
use std::time::Duration;

use super::*;

fn style(limit: u64) -> LogStyle {
    LogStyle { limit, ..LogStyle::default() }
}

#[test]
fn a_flood_leaves_two_files_of_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.0.log");
    let mut log = LogFile::open(path.clone(), style(1000)).unwrap();
    for at in 0..100u8 {
        log.append(&[at; 333]).unwrap();
    }
    assert_eq!(fs::metadata(folder.path().join("a.0.log.1")).unwrap().len(), 999);
    assert_eq!(fs::metadata(&path).unwrap().len(), 333);
    assert_eq!(fs::read(&path).unwrap()[332], 99);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn more_than_the_limit_at_once_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut log = LogFile::open(path.clone(), style(10)).unwrap();
    log.append(b"0123456789abcdefghijklmno").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"klmno");
    assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), b"abcdefghij");
}

#[test]
fn where_the_file_will_end_is_known_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = LogFile::open(folder.path().join("log"), style(10)).unwrap();
    for bytes in [b"0123".as_slice(), b"4567", b"89ab", b"c"] {
        let ready = log.prepare(bytes);
        let wanted = log.position_after(ready.len());
        log.append_prepared(&ready).unwrap();
        assert_eq!(Some(log.position()), wanted);
    }
    assert_eq!(log.position().size, 5);
}

#[test]
fn a_file_that_was_moved_away_is_written_anew_after_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut log = LogFile::open(path.clone(), style(1000)).unwrap();
    log.append(b"old").unwrap();
    fs::rename(&path, folder.path().join("kept")).unwrap();
    log.reopen().unwrap();
    log.append(b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn appending_goes_on_after_a_restart_and_counts_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    LogFile::open(path.clone(), style(10)).unwrap().append(b"12345678").unwrap();
    LogFile::open(path.clone(), style(10)).unwrap().append(b"abcd").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"abcd");
    assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), b"12345678");
}

#[test]
fn a_symbolic_link_and_a_pipe_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    assert!(matches!(LogFile::open(link, style(10)), Err(LogError::Open { .. })));
    assert!(matches!(LogFile::open("/dev/null".into(), style(10)), Err(LogError::Open { .. })));
}

#[test]
fn lines_get_the_time_and_lose_their_escapes() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = LogStyle { limit: 10_000, timestamps: true, replace_escape: true, ..LogStyle::default() };
    let mut log = LogFile::open(folder.path().join("log"), wanted).unwrap();
    let styled = log.styled(b"a\x1b[1m\n\rb", "[t] ");
    assert_eq!(styled, b"[t] a.[1m\n[t] b");
}

#[test]
fn the_time_is_written_in_utc() {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_210_096);
    assert_eq!(timestamp(at), "[2024-02-29 12:34:56] ");
}

#[test]
fn what_was_appended_is_found_again_across_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let style = LogStyle { limit: 10, ..LogStyle::default() };
    let mut log = LogFile::open(path.clone(), style).unwrap();
    log.append(b"01234567").unwrap();
    assert_eq!(log.earlier(9, 100), None);
    log.append(b"89abcdef").unwrap();
    assert_eq!(log.earlier(8, 100).as_deref(), Some(&b"89abcdef"[..]));
    assert_eq!(log.earlier(13, 4).as_deref(), Some(&b"3456"[..]));
    assert_eq!(log.earlier(13, 100).as_deref(), Some(&b"34567"[..]));
    assert_eq!(log.earlier(17, 100), None);
    fs::remove_file(rotated(&path)).unwrap();
    fs::write(rotated(&path), b"another's").unwrap();
    assert_eq!(log.earlier(13, 4), None);
    assert_eq!(log.earlier(3, 2).as_deref(), Some(&b"de"[..]));
}
