//! The calls that the daemon answers, each with its parameters.
//!
//! A call is read once, from the method's name and the parameters of a [`Request`]; after that it is one of a closed
//! set. What the interface's text declares and what is listed here are the same: a test compares them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::INTERFACE_NAME;
use crate::frame::{self, FrameError, Request};
use crate::types::{
    BlockAttach, BlockDetach, CdEject, CdInsert, ConfigUpdate, CreateParameters, DumpParameters,
    GuestParameter, MemSet, MigrateParameters, NetworkAttach, NetworkDetach, NetworkSetBridge,
    RebootParameters, ReceiveParameters, Rename, ResolveParameters, RestoreParameters, SaveParameters, Sysrq,
    TriggerParameters, VcpuPin, VcpuSet,
};

/// The interface that every varlink service has.
pub const SERVICE_NAME: &str = "org.varlink.service";

/// Its definition (<https://varlink.org/Service>).
pub const SERVICE_INTERFACE: &str = "# Every varlink service answers this.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
";

/// Why a call is not answered by a method: the errors of `org.varlink.service`.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "error", content = "parameters")]
pub enum CallError {
    /// The interface does not exist.
    #[error("There is no interface {interface}")]
    InterfaceNotFound {
        /// Its name.
        interface: String,
    },
    /// The interface has no such method.
    #[error("There is no method {method}")]
    MethodNotFound {
        /// Its name without the interface.
        method: String,
    },
    /// A parameter is missing or wrong.
    #[error("The parameters are wrong: {parameter}")]
    InvalidParameter {
        /// What is wrong.
        parameter: String,
    },
    /// The method sends several replies, and the call does not allow them.
    #[error("The method needs \"more\"")]
    ExpectedMore {},
}

/// A call of any interface that the daemon has.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// Of `io.outrigger`.
    Own(Call),
    /// Of `org.varlink.service`.
    Service(Service),
}

/// A call of `org.varlink.service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Describes the service.
    GetInfo,
    /// Returns the text of an interface.
    GetInterfaceDescription(InterfaceParameter),
}

/// Parameters of `GetInterfaceDescription`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceParameter {
    /// The interface's name.
    pub interface: String,
}

impl Incoming {
    /// Reads a call.
    ///
    /// # Errors
    /// When there is no such interface or method, its parameters are wrong, or it needs `more`.
    pub fn read(request: &Request) -> Result<Self, CallError> {
        let (interface, method) = request.method.rsplit_once('.').unwrap_or(("", &request.method));
        let parameters = request.parameters.as_deref();
        match interface {
            INTERFACE_NAME => {
                let call = Call::read(method, parameters)?;
                if call.needs_more() && !request.more {
                    return Err(CallError::ExpectedMore {});
                }
                Ok(Self::Own(call))
            }
            SERVICE_NAME => Service::read(method, parameters).map(Self::Service),
            other => Err(CallError::InterfaceNotFound { interface: other.to_owned() }),
        }
    }
}

impl Service {
    fn read(method: &str, parameters: Option<&RawValue>) -> Result<Self, CallError> {
        Ok(match method {
            "GetInfo" => Self::GetInfo,
            "GetInterfaceDescription" => Self::GetInterfaceDescription(read(parameters)?),
            _ => return Err(CallError::MethodNotFound { method: method.to_owned() }),
        })
    }
}

/// Declares the calls and everything that lists all of them.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident $(($parameters:ty))?,)*) => {
        /// A call of `io.outrigger`.
        #[derive(Clone, Debug, Serialize)]
        #[serde(tag = "method", content = "parameters")]
        pub enum Call {
            $($(#[$doc])* $name $(($parameters))?,)*
        }

        impl Call {
            /// The names of all methods.
            pub const METHODS: &[&str] = &[$(stringify!($name)),*];

            /// Reads a call from the method's name without the interface, and its parameters.
            ///
            /// # Errors
            /// [`CallError::MethodNotFound`], [`CallError::InvalidParameter`].
            pub fn read(method: &str, parameters: Option<&RawValue>) -> Result<Self, CallError> {
                Ok(match method {
                    $(stringify!($name) => Self::$name $((read::<$parameters>(parameters)?))?,)*
                    _ => return Err(CallError::MethodNotFound { method: method.to_owned() }),
                })
            }

            /// The method's name without the interface.
            #[must_use]
            pub const fn method(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($name),)*
                }
            }
        }
    };
}

calls! {
    /// Creates a guest.
    Create(CreateParameters),
    /// Lists the guests.
    List,
    /// Returns one guest.
    Get(GuestParameter),
    /// Returns a guest's configuration and what its stubdomain reports.
    Inspect(GuestParameter),
    /// Destroys a guest.
    Destroy(GuestParameter),
    /// Pauses a guest.
    Pause(GuestParameter),
    /// Unpauses a guest.
    Unpause(GuestParameter),
    /// Asks a guest to power off.
    Shutdown(GuestParameter),
    /// Asks a guest to reboot.
    Reboot(RebootParameters),
    /// Describes the host.
    HostInfo,
    /// Lists the host's CPUs and NUMA nodes.
    HostTopology,
    /// Lists the vCPUs of a guest and of its stubdomain.
    VcpuList(GuestParameter),
    /// Attaches a disk.
    BlockAttach(BlockAttach),
    /// Detaches a disk.
    BlockDetach(BlockDetach),
    /// Lists a guest's disks.
    BlockList(GuestParameter),
    /// Inserts a disc into a CD drive.
    CdInsert(CdInsert),
    /// Ejects the disc of a CD drive.
    CdEject(CdEject),
    /// Attaches a network interface.
    NetworkAttach(NetworkAttach),
    /// Detaches a network interface.
    NetworkDetach(NetworkDetach),
    /// Moves a network interface to another bridge.
    NetworkSetBridge(NetworkSetBridge),
    /// Lists a guest's network interfaces.
    NetworkList(GuestParameter),
    /// Lists a guest's channels.
    ChannelList(GuestParameter),
    /// Chooses the CPUs of vCPUs.
    VcpuPin(VcpuPin),
    /// Sets the number of vCPUs.
    VcpuSet(VcpuSet),
    /// Sets the memory.
    MemSet(MemSet),
    /// Limits the memory.
    MemMax(MemSet),
    /// Replaces the configuration for the next start.
    ConfigUpdate(ConfigUpdate),
    /// Renames a guest.
    Rename(Rename),
    /// Saves a guest.
    Save(SaveParameters),
    /// Dumps a guest's memory.
    DumpCore(DumpParameters),
    /// Restores a guest.
    Restore(RestoreParameters),
    /// Gives up a save, a dump or a migration.
    Cancel(GuestParameter),
    /// Migrates a guest to another host.
    Migrate(MigrateParameters),
    /// Receives a guest from another host.
    MigrateReceive(ReceiveParameters),
    /// Settles a migration.
    MigrateResolve(ResolveParameters),
    /// Lists the migrations.
    Migrations,
    /// Suspends a guest.
    Suspend(GuestParameter),
    /// Resumes a suspended guest.
    Resume(GuestParameter),
    /// Takes a screenshot.
    Screenshot(GuestParameter),
    /// Sends a signal to the virtual hardware.
    Trigger(TriggerParameters),
    /// Sends a magic SysRq key.
    Sysrq(Sysrq),
    /// Subscribes to events.
    Monitor,
    /// Returns the socket for QMP with a guest's QEMU.
    Qmp(GuestParameter),
}

impl Call {
    /// Whether the method sends several replies, so that the call must allow them.
    #[must_use]
    pub const fn needs_more(&self) -> bool {
        matches!(self, Self::Monitor | Self::Screenshot(_))
    }

    /// Whether only the client ends the call.
    #[must_use]
    pub const fn is_endless(&self) -> bool {
        matches!(self, Self::Monitor)
    }
}

fn read<T: DeserializeOwned>(parameters: Option<&RawValue>) -> Result<T, CallError> {
    frame::read_parameters(parameters).map_err(|error| {
        let parameter = match error {
            FrameError::Malformed(source) => source.to_string(),
            FrameError::TooLong => error.to_string(),
        };
        CallError::InvalidParameter { parameter }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Map, Value, json};

    use super::*;
    use crate::INTERFACE;

    /// The methods of the interface's text, each with its parameters: name and type.
    fn declared() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
        let lines = INTERFACE.lines().filter_map(|line| line.strip_prefix("method "));
        lines
            .map(|line| {
                let (name, rest) = line.split_once('(').unwrap();
                let list = rest.split_once(") -> (").unwrap().0;
                // The commas of an enumeration are not between parameters.
                let mut parameters = Vec::new();
                let mut rest = list;
                while let Some((parameter, more)) = rest.split_once(": ") {
                    let end = if more.starts_with('(') {
                        more.find(')').unwrap() + 1
                    } else {
                        more.find(',').unwrap_or(more.len())
                    };
                    parameters.push((parameter, &more[..end]));
                    rest = more[end..].trim_start_matches(", ");
                }
                (name, parameters)
            })
            .collect()
    }

    /// Some value of a type.
    fn sample(kind: &str) -> Value {
        match kind {
            "string" => json!("x"),
            "int" | "?int" => json!(1),
            "?string" => json!("x"),
            "bool" | "?bool" => json!(true),
            other => json!(other.trim_matches(['(', ')']).split(", ").next().unwrap()),
        }
    }

    #[test]
    fn each_method_of_the_text_is_a_call_with_the_same_parameters() {
        let declared = declared();
        let names: BTreeSet<&str> = declared.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, Call::METHODS.iter().copied().collect());
        assert_eq!(declared.len(), Call::METHODS.len(), "none is declared twice");
        for (name, parameters) in declared {
            let object: Map<String, Value> =
                parameters.iter().map(|(name, kind)| ((*name).to_owned(), sample(kind))).collect();
            let raw = frame::parameters(&object).unwrap();
            let call = Call::read(name, Some(&raw)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(call.method(), name);
            let written = serde_json::to_value(&call).unwrap();
            let expected = if object.is_empty() { Value::Null } else { object.into() };
            assert_eq!(written["parameters"], expected, "{name}");
        }
    }

    #[test]
    fn call_that_cannot_be_read_is_refused_as_varlink_defines() {
        let read = |text: &str| Incoming::read(&frame::decode(text.as_bytes()).unwrap()).unwrap_err();
        let interface = |name: &str| CallError::InterfaceNotFound { interface: name.to_owned() };
        assert_eq!(read(r#"{"method":"com.example.Do"}"#), interface("com.example"));
        assert_eq!(read(r#"{"method":"Do"}"#), interface(""));
        let unknown = CallError::MethodNotFound { method: "Do".to_owned() };
        assert_eq!(read(r#"{"method":"io.outrigger.Do"}"#), unknown);
        assert_eq!(read(r#"{"method":"org.varlink.service.Do"}"#), unknown);
        assert_eq!(read(r#"{"method":"io.outrigger.Monitor"}"#), CallError::ExpectedMore {});
        assert!(matches!(read(r#"{"method":"io.outrigger.Get"}"#), CallError::InvalidParameter { .. }));
    }
}
