//! A whole file of a saved guest, part after part, as a restore reads it.

use std::io::{Cursor, Read};

use config::Uuid;
use migration_stream::libxc::{Checker, Summary};
use migration_stream::libxl_json::{Facts, decode, encode};
use migration_stream::{Header, Metadata, StreamError, libxl, qemu};
use xen_types::KiB;

const STATE: &[u8] = b"QEVM\0\0\0\x03\x04\0\0\0\0\x05timer\0";

fn metadata() -> Metadata {
    let text = "type = 'hvm'\nname = 'hello'\nmemory = 64\nserial = 'pty'\n";
    let uuid = Uuid::from_u128(8);
    let mut config = config::load_str("hello.cfg", text).config.expect("it is a configuration");
    config.uuid = Some(uuid);
    Metadata {
        id: Uuid::from_u128(7),
        name: "hello".to_owned(),
        uuid,
        config,
        machine: "xenfv-4.2".to_owned(),
        qemu_version: String::new(),
        xen_version: String::new(),
        xen_release: String::new(),
        vcpus_online: 1,
        devices: Vec::new(),
        footers: false,
        starts_early: false,
        created: 0,
        outrigger: String::new(),
    }
}

/// libxc's stream of a guest with one page.
fn libxc() -> Vec<u8> {
    let mut bytes = vec![0xff; 8];
    bytes.extend_from_slice(b"XENF\0\0\0\x03\0\0\0\0\0\0\0\0\x02\0\0\0\x0c\0\0\0\x04\0\0\0\x14\0\0\0");
    let page = [vec![1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0], vec![0xaa; 4096]].concat();
    for (kind, body) in [
        (0x11_u32, vec![0; 24]),
        (0x12, vec![0; 16]),
        (0x10, Vec::new()),
        (1, page),
        (8, vec![0; 24]),
        (9, vec![1; 8]),
        (10, vec![0; 8]),
        (0, Vec::new()),
    ] {
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(body.len()).expect("a record is small").to_le_bytes());
        bytes.extend_from_slice(&body);
    }
    bytes
}

fn file() -> Vec<u8> {
    let metadata = metadata();
    let facts = Facts {
        uuid: metadata.uuid,
        online_vcpus: vec![0],
        paging_memory: KiB(2048),
        generation_id: None,
        hvm_pirq: true,
        stub_kernel: "/boot/stub".to_owned(),
        stub_ramdisk: "/boot/stub.img".to_owned(),
        stub_memory: KiB::from_mib(48),
    };
    let json = encode(&metadata.config, &facts);
    let header = Header { json, tail: metadata.encode().expect("it is small") };
    let parts = [
        header.encode().expect("it is small"),
        libxl::begin(),
        libxc(),
        libxl::emulator_context(STATE).expect("it is small"),
        libxl::end(),
    ];
    parts.concat()
}

type Parts = (Header, Option<Metadata>, Summary, libxl::Rest);

/// Reads the file. libxc's stream is taken byte by byte, as nothing but its end says how long it is.
fn read(from: &mut impl Read) -> Result<Parts, StreamError> {
    let header = Header::read(from)?;
    let metadata = Metadata::decode(&header.tail)?;
    libxl::read_begin(from)?;
    let mut checker = Checker::default();
    let mut byte = [0];
    while !checker.is_complete() && from.read(&mut byte).expect("memory can be read") == 1 {
        checker.take(&byte)?;
    }
    let summary = checker.finish()?;
    let rest = libxl::read_rest(from, qemu::MAX_STATE)?;
    qemu::check(&rest.emulator)?;
    Ok((header, metadata, summary, rest))
}

#[test]
fn whole_file_is_read_part_after_part() {
    let bytes = file();
    let mut from = Cursor::new([bytes.as_slice(), b"next"].concat());
    let (header, found, summary, rest) = read(&mut from).unwrap();
    assert_eq!(from.position(), bytes.len() as u64);
    assert_eq!(found, Some(metadata()));
    assert_eq!(decode(&header.json).unwrap().config.name, "hello");
    assert_eq!((summary.xen_minor, summary.pages), (20, 1));
    assert_eq!(rest.emulator, STATE);
}

#[test]
fn every_cut_is_named() {
    let bytes = file();
    for cut in 0..bytes.len() {
        // Within the page, every cut is like the next.
        if bytes[cut] == 0xaa && cut % 97 != 0 {
            continue;
        }
        let error = read(&mut &bytes[..cut]).unwrap_err();
        assert!(matches!(error, StreamError::Truncated { .. }), "{cut}: {error}");
    }
}
