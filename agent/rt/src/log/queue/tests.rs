use super::*;
use std::io::Read;

const LONG: Duration = Duration::from_secs(30);

fn lost(count: u64) -> String {
    format!("lost {count}\n")
}

fn line(number: usize) -> String {
    format!("line {number} with as much text as a line of the access log might have at the very least\n")
}

#[test]
fn a_stalled_reader_blocks_no_logger_and_dropped_lines_are_reported() {
    const ALL: usize = 3 * LINES;
    let (mut reader, writer) = io::pipe().unwrap();
    let queue = Queue::default();
    queue.start(writer, lost).unwrap();
    // The pipe has no reader: if a push waited for it, this would never end.
    (0..ALL).for_each(|number| queue.push(&line(number)));
    let dropped = queue.dropped().get();
    assert!(dropped > 0 && dropped < ALL as u64, "{dropped}");
    assert!(!queue.flush(Duration::from_millis(20)), "nothing was read, so not all can be written");

    let read = std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        let mut text = String::new();
        while !text.contains("last\n") {
            let count = reader.read(&mut bytes).unwrap();
            text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        text
    });
    assert!(queue.flush(LONG));
    queue.push("last\n");
    let text = read.join().unwrap();
    let told: u64 = text.lines().filter_map(|line| line.strip_prefix("lost ")?.parse::<u64>().ok()).sum();
    assert_eq!(told, dropped);
    assert_eq!(text.lines().filter(|line| line.starts_with("line ")).count() as u64 + told, ALL as u64);
    // What was written is the beginning, without gaps before the line that tells of them.
    assert!(text.lines().take(100).eq((0..100).map(line).collect::<String>().lines()));
}

#[test]
fn lines_are_bounded_by_their_size_too() {
    let queue = Queue::default();
    let big = "x".repeat(BYTES / 4 + 1);
    (0..4).for_each(|_| queue.push(&big));
    assert_eq!(queue.dropped().get(), 1);
}

#[test]
fn what_was_logged_before_a_flush_is_written_when_it_returns() {
    let (mut reader, writer) = io::pipe().unwrap();
    let queue = Queue::default();
    queue.start(writer, lost).unwrap();
    (0..3).for_each(|number| queue.push(&line(number)));
    assert!(queue.flush(LONG));
    let mut bytes = vec![0; 1 << 16];
    let count = reader.read(&mut bytes).unwrap();
    assert_eq!(std::str::from_utf8(&bytes[..count]).unwrap(), (0..3).map(line).collect::<String>());
    assert_eq!(queue.dropped().get(), 0);
}

#[test]
fn a_log_that_cannot_be_written_counts_as_dropped() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let queue = Queue::default();
    queue.start(writer, lost).unwrap();
    queue.push("a\n");
    assert!(queue.flush(LONG));
    assert_eq!(queue.dropped().get(), 1);
}

#[test]
fn a_line_too_long_for_the_queue_blocks_no_later_one() {
    let (mut reader, writer) = io::pipe().unwrap();
    let queue = Queue::default();
    queue.start(writer, lost).unwrap();
    queue.push(&"x".repeat(BYTES + 1));
    assert!(queue.flush(LONG));
    queue.push("after\n");
    assert!(queue.flush(LONG));
    let mut bytes = [0; 100];
    let count = reader.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..count], b"lost 1\nafter\n");
}
