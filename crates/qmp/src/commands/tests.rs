use serde::de::DeserializeOwned;
use serde_json::json;

use super::*;
use crate::monitor::{Command, Request};

fn answer<C: Command>(text: &str) -> C::Answer
where
    C::Answer: DeserializeOwned,
{
    serde_json::from_str(text).unwrap()
}

#[test]
fn arguments_have_the_names_of_the_protocol() {
    let command = BlockdevChangeMedium {
        id: "cd".into(),
        filename: "/dev/fdset/7".into(),
        format: "raw".into(),
        read_only_mode: "read-only".into(),
    };
    assert_eq!(
        Request::of(&command).unwrap().line(5),
        "{\"execute\":\"blockdev-change-medium\",\"arguments\":{\"id\":\"cd\",\"filename\":\"/dev/fdset/7\",\
         \"format\":\"raw\",\"read-only-mode\":\"read-only\"},\"id\":5}\n"
    );
    let command = RemoveFd { fdset_id: 3, fd: None };
    assert_eq!(Request::of(&command).unwrap().arguments.unwrap().get(), "{\"fdset-id\":3}");
    let log = Request::of(&XenSetGlobalDirtyLog { enable: false }).unwrap();
    assert_eq!(
        log.line(2),
        "{\"execute\":\"xen-set-global-dirty-log\",\"arguments\":{\"enable\":false},\"id\":2}\n"
    );
    let status = Request::of(&QueryStatus {}).unwrap().out_of_band();
    assert_eq!(status.line(1), "{\"exec-oob\":\"query-status\",\"arguments\":{},\"id\":1}\n");
}

#[test]
fn answers_of_a_real_qemu_are_read_and_their_other_members_ignored() {
    // What QEMU 7.2 said.
    let status = answer::<QueryStatus>(r#"{"status": "running", "singlestep": false, "running": true}"#);
    assert!(status.running);
    let version = answer::<QueryVersion>(
        r#"{"qemu": {"micro": 19, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u16"}"#,
    );
    assert_eq!(version.qemu, VersionNumber { major: 7, minor: 2, micro: 19 });
    let drives = answer::<QueryBlock>(
        r##"[{"io-status": "ok", "device": "ide2-cd0", "locked": false, "removable": true, "qdev": "cd0",
            "tray_open": false, "type": "unknown"},
            {"device": "", "locked": false, "removable": false, "qdev": "ide0", "inserted": {"iops_rd": 0,
            "ro": false, "node-name": "#block1", "drv": "raw", "file": "/dev/xvda", "encrypted": false},
            "type": "unknown"}]"##,
    );
    assert_eq!(drives[0].tray_open, Some(false));
    assert_eq!(drives[1].inserted.as_ref().unwrap().node_name.as_deref(), Some("#block1"));
    let sets = answer::<QueryFdsets>(r#"[{"fds": [{"fd": 9, "opaque": "stub-devid:832"}], "fdset-id": 2}]"#);
    assert_eq!(sets[0].fds[0].opaque.as_deref(), Some("stub-devid:832"));
}

#[test]
fn answer_of_another_type_is_none() {
    assert!(serde_json::from_value::<Status>(json!({"running": "yes", "status": "running"})).is_err());
    assert!(serde_json::from_value::<Nothing>(json!("")).is_err());
    assert!(serde_json::from_value::<Vec<Fdset>>(json!([{"fds": [], "fdset-id": -1}])).is_err());
}
