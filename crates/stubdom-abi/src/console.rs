use core::fmt;

use thiserror::Error;

/// One PV console of a stubdomain, by its role.
///
/// The numbers are those of `docs/misc/stubdom.txt` (Xen 4.14 and later) and of `STUBDOM_CONSOLE_*` in
/// `tools/libs/light/libxl_internal.h`. Linux takes the *last digit* of a secondary console's xenstore node as
/// the number of its `hvc` device and refuses 0 (`drivers/tty/hvc/hvc_xen.c`), so that 9 is the largest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StubConsole {
    /// Console 0: the kernel's and the agent's log, then QEMU's standard error. The primary console.
    Log,
    /// Console 1: QEMU writes its device state here when the guest is saved. Exists only when it is used.
    StateOut,
    /// Console 2: QEMU reads its device state from here when the guest is restored. Exists only when it is used.
    StateIn,
    /// Console 3 + k: the guest's serial port k (COM1 is 0).
    Serial(SerialPort),
}

/// The number of one of the guest's serial ports, 0 (COM1) to 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SerialPort(u8);

/// Why a number is not that of a stubdomain's console or of a guest's serial port.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConsoleError {
    /// More serial ports than there are consoles for.
    #[error("Serial port {0} cannot be served: a stubdomain has consoles for ports 0 to {max}", max = SerialPort::COUNT - 1)]
    NoSuchSerial(usize),
    /// A console number above 9.
    #[error("Console {0} cannot exist: Linux numbers a domain's consoles 0 to {max}", max = StubConsole::MAX)]
    NoSuchConsole(u32),
}

impl SerialPort {
    /// How many serial ports a guest can have.
    pub const COUNT: usize = 7;

    /// Makes the port numbered `index`, 0 being COM1.
    ///
    /// # Errors
    /// When `index` is [`Self::COUNT`] or more.
    pub const fn new(index: usize) -> Result<Self, ConsoleError> {
        match index {
            0 => Ok(Self(0)),
            1 => Ok(Self(1)),
            2 => Ok(Self(2)),
            3 => Ok(Self(3)),
            4 => Ok(Self(4)),
            5 => Ok(Self(5)),
            6 => Ok(Self(6)),
            _ => Err(ConsoleError::NoSuchSerial(index)),
        }
    }

    /// The port's number, 0 being COM1.
    #[must_use]
    pub const fn index(self) -> u8 {
        self.0
    }
}

impl StubConsole {
    /// The largest number of a console.
    pub const MAX: u32 = 9;

    /// The console of the guest's serial port `index`, 0 being COM1.
    ///
    /// # Errors
    /// When the guest cannot have that many ports.
    pub const fn serial(index: usize) -> Result<Self, ConsoleError> {
        match SerialPort::new(index) {
            Ok(port) => Ok(Self::Serial(port)),
            Err(error) => Err(error),
        }
    }

    /// The console's number: the last part of its xenstore path, and of its device's name.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Log => 0,
            Self::StateOut => 1,
            Self::StateIn => 2,
            Self::Serial(port) => 3 + port.0,
        }
    }

    /// The console with this number.
    ///
    /// # Errors
    /// When the number is above [`Self::MAX`].
    pub const fn from_number(number: u32) -> Result<Self, ConsoleError> {
        match number {
            0 => Ok(Self::Log),
            1 => Ok(Self::StateOut),
            2 => Ok(Self::StateIn),
            3..=Self::MAX => Self::serial(number as usize - 3),
            _ => Err(ConsoleError::NoSuchConsole(number)),
        }
    }

    /// The console's device inside the stubdomain: `/dev/hvc0` to `/dev/hvc9`.
    #[must_use]
    pub fn device(self) -> String {
        format!("/dev/hvc{}", self.number())
    }
}

/// The console that carries QEMU's monitor, where a stubdomain has QMP on a console ([`crate::QMP_CONSOLE_WORD`]): the
/// first one behind those of the guest's serial ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QmpConsole(SerialPort);

impl QmpConsole {
    /// The console behind those of so many serial ports.
    ///
    /// # Errors
    /// When the ports leave none.
    pub const fn behind(serial_ports: usize) -> Result<Self, ConsoleError> {
        match SerialPort::new(serial_ports) {
            Ok(place) => Ok(Self(place)),
            Err(error) => Err(error),
        }
    }

    /// The console's number.
    #[must_use]
    pub const fn number(self) -> u8 {
        StubConsole::Serial(self.0).number()
    }

    /// The console's device inside the stubdomain.
    #[must_use]
    pub fn device(self) -> String {
        StubConsole::Serial(self.0).device()
    }
}

impl fmt::Display for StubConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => f.write_str("log"),
            Self::StateOut => f.write_str("state out"),
            Self::StateIn => f.write_str("state in"),
            Self::Serial(port) => write!(f, "serial {}", port.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_from_0_to_9_is_one_console_and_back() {
        for number in 0..=9 {
            let console = StubConsole::from_number(number).unwrap();
            assert_eq!(u32::from(console.number()), number);
            assert_eq!(console.device(), format!("/dev/hvc{number}"));
        }
        assert_eq!(StubConsole::from_number(10), Err(ConsoleError::NoSuchConsole(10)));
    }

    #[test]
    fn monitor_is_behind_the_serial_ports() {
        let console = QmpConsole::behind(2).unwrap();
        assert_eq!((console.number(), console.device().as_str()), (5, "/dev/hvc5"));
        assert_eq!(QmpConsole::behind(6).map(QmpConsole::number), Ok(9));
        assert!(QmpConsole::behind(7).is_err());
    }

    #[test]
    fn the_eighth_serial_port_is_refused() {
        assert_eq!(StubConsole::serial(6).map(StubConsole::number), Ok(9));
        assert_eq!(StubConsole::serial(7), Err(ConsoleError::NoSuchSerial(7)));
    }
}
