//! Small ELF files for tests.

use std::{fs, path::Path};

/// A dynamic ELF file for x86-64 that has nothing but its dynamic section.
pub(crate) struct Elf {
    needed: Vec<String>,
    run_path: Option<String>,
    interpreter: Option<String>,
    machine: u16,
    says: Option<String>,
}

impl Elf {
    pub(crate) fn new(needed: &[&str]) -> Self {
        let needed = needed.iter().map(|name| (*name).to_owned()).collect();
        Self { needed, run_path: None, interpreter: None, machine: 62, says: None }
    }

    pub(crate) fn run_path(mut self, path: &str) -> Self {
        self.run_path = Some(path.to_owned());
        self
    }

    pub(crate) fn interpreter(mut self, path: &str) -> Self {
        self.interpreter = Some(path.to_owned());
        self
    }

    pub(crate) fn machine(mut self, machine: u16) -> Self {
        self.machine = machine;
        self
    }

    /// Makes it a program that writes this text to its standard output, whatever its arguments are.
    pub(crate) fn says(mut self, text: &str) -> Self {
        self.says = Some(text.to_owned());
        self
    }

    /// The instructions of such a program, with the text behind them.
    fn code(text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        let mut code = vec![0xb8, 1, 0, 0, 0]; // mov $1, %eax: write
        code.extend([0xbf, 1, 0, 0, 0]); // mov $1, %edi
        code.extend([0x48, 0x8d, 0x35, 16, 0, 0, 0]); // lea 16(%rip), %rsi: the text
        code.push(0xba); // mov $length, %edx
        code.extend(length);
        code.extend([0x0f, 0x05]); // syscall
        code.extend([0xb8, 60, 0, 0, 0]); // mov $60, %eax: exit
        code.extend([0x31, 0xff, 0x0f, 0x05]); // xor %edi, %edi; syscall
        code.extend(text.as_bytes());
        code
    }

    /// The file: header, three program headers, dynamic section, strings, interpreter.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut strings = vec![0];
        let mut string = |text: &str| {
            let at = strings.len() as u64;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let mut dynamic: Vec<(u64, u64)> = self.needed.iter().map(|name| (1, string(name))).collect();
        dynamic.extend(self.run_path.iter().map(|path| (29, string(path))));
        let table = 64 + 3 * 56;
        let start = table + 16 * (dynamic.len() as u64 + 3);
        dynamic.extend([(5, start), (10, strings.len() as u64), (0, 0)]);
        let interpreter = self.interpreter.clone().map(|path| format!("{path}\0")).unwrap_or_default();
        let code = self.says.as_deref().map(Self::code).unwrap_or_default();
        let entry = start + strings.len() as u64;
        let end = entry + code.len() as u64 + interpreter.len() as u64;

        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend([3_u16.to_le_bytes(), self.machine.to_le_bytes()].concat());
        file.extend(1_u32.to_le_bytes());
        for word in [entry, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 3, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let interpreted = if interpreter.is_empty() { 0 } else { 3 };
        let headers = [
            (1_u32, 0, end),
            (2, table, start - table),
            (interpreted, end - interpreter.len() as u64, interpreter.len() as u64),
        ];
        for (kind, offset, size) in headers {
            file.extend([kind.to_le_bytes(), 5_u32.to_le_bytes()].concat());
            for word in [offset, offset, offset, size, size, 8] {
                file.extend(word.to_le_bytes());
            }
        }
        for (tag, value) in dynamic {
            file.extend([tag.to_le_bytes(), value.to_le_bytes()].concat());
        }
        file.extend(strings);
        file.extend(code);
        file.extend(interpreter.as_bytes());
        file
    }

    pub(crate) fn write(&self, path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, self.bytes()).unwrap();
    }
}

/// A kernel module that says only what it depends on.
pub(crate) fn module(depends: &str) -> Vec<u8> {
    let info = format!("license=GPL\0depends={depends}\0name=x\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let (info_at, names_at) = (64, 64 + info.len() as u64);
    let sections = names_at + names.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([1_u16.to_le_bytes(), 62_u16.to_le_bytes()].concat());
    file.extend(1_u32.to_le_bytes());
    for word in [0, 0, sections] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 0, 0, 64, 3, 2] {
        file.extend(half.to_le_bytes());
    }
    file.extend(info.as_bytes());
    file.extend(names);
    for (name, kind, offset, size) in
        [(0_u32, 0_u32, 0, 0), (1, 1, info_at, info.len() as u64), (10, 3, names_at, names.len() as u64)]
    {
        file.extend([name.to_le_bytes(), kind.to_le_bytes()].concat());
        for word in [0, 0, offset, size, 0, 1, 0] {
            file.extend(word.to_le_bytes());
        }
        // sh_link and sh_info share one word above; sh_addralign and sh_entsize follow.
    }
    file
}
