use std::fs;

use tram_sandbox::protocol::{IdRange, InstanceId};
use tram_site::DeviceShare;

use super::*;

/// Whole devices `0` and `1`, the first by another name too, and slices of a third.
fn devices() -> Devices {
    let folder = tempfile::tempdir().unwrap();
    let device = |name: &str, nodes: &[&str]| {
        let nodes: Vec<String> = nodes
            .iter()
            .map(|node| format!(r#"{{"path":"/dev/{node}"}}"#))
            .collect();
        format!(
            r#"{{"name":"{name}","containerEdits":{{"deviceNodes":[{}]}}}}"#,
            nodes.join(",")
        )
    };
    let all = [
        device("0", &["acme0"]),
        device("GPU-a", &["acme0"]),
        device("1", &["acme1"]),
        device("2:0", &["acme2", "acme-cap0"]),
        device("2:1", &["acme2", "acme-cap1"]),
    ];
    let text = format!(
        r#"{{"cdiVersion":"0.6.0","kind":"acme.com/gpu","devices":[{}],
            "containerEdits":{{"deviceNodes":[{{"path":"/dev/acmectl"}}],"env":["ACME=on"]}}}}"#,
        all.join(",")
    );
    fs::write(folder.path().join("acme.json"), text).unwrap();
    let devices = Devices::read(&[folder.path().to_owned()]);
    assert_eq!(devices.problems, []);
    devices
}

fn want(among: &[&str], count: u32, share: Option<u64>) -> DeviceSpec {
    DeviceSpec {
        instance_type: "gpu".to_owned(),
        among: among.iter().map(|name| format!("acme.com/gpu={name}")).collect(),
        count,
        share: share.map(|bytes| DeviceShare { bytes, of_bytes: 10 }),
    }
}

/// Gives out as asked, one after the other; the names, or what was said.
fn give(wants: &[DeviceSpec]) -> Vec<String> {
    let devices = devices();
    let mut held: Vec<Held> = Vec::new();
    let mut told = Vec::new();
    for want in wants {
        match choose(want, &devices, held.iter()) {
            Ok(given) => {
                told.push(given.names());
                held.extend(given.devices);
            }
            Err(error @ Error::Unavailable { .. }) => told.push(error.to_string()),
            Err(error) => panic!("{error}"),
        }
    }
    told
}

#[test]
fn a_device_is_given_once_by_whatever_name() {
    let told = give(&[
        want(&["0", "1"], 1, None),
        want(&["GPU-a", "1"], 1, None),
        want(&["0", "1", "GPU-a"], 1, None),
    ]);
    assert_eq!(told[..2], ["acme.com/gpu=0", "acme.com/gpu=1"]);
    assert!(
        told[2].contains("every device of instance type `gpu` is in use (there are 3 on this machine)"),
        "{}",
        told[2]
    );
    let both = give(&[want(&["0", "GPU-a", "1"], 2, None)]);
    assert_eq!(both, ["acme.com/gpu=0, acme.com/gpu=1"]);
}

#[test]
fn all_of_several_or_none() {
    let told = give(&[want(&["1"], 1, None), want(&["0", "1"], 2, None)]);
    assert!(
        told[1].contains("needs 2 devices, and 1 of the 2 on this machine are free"),
        "{}",
        told[1]
    );
}

#[test]
fn slices_go_side_by_side() {
    let slices = want(&["2:0", "2:1"], 1, None);
    let told = give(&[slices.clone(), slices.clone(), slices]);
    assert_eq!(told[..2], ["acme.com/gpu=2:0", "acme.com/gpu=2:1"]);
    assert!(told[2].contains("is in use"));
}

#[test]
fn shares_fill_one_device_before_the_next_and_exclude_the_whole() {
    let share = |bytes| want(&["0", "1"], 1, Some(bytes));
    let told = give(&[
        share(6),
        share(6),
        share(4),
        share(5),
        want(&["0", "1"], 1, None),
        share(4),
    ]);
    assert_eq!(told[..3], ["acme.com/gpu=0", "acme.com/gpu=1", "acme.com/gpu=0"]);
    assert!(told[3].contains("is in use") && told[4].contains("is in use"));
    assert_eq!(told[5], "acme.com/gpu=1");
    let told = give(&[want(&["0"], 1, None), want(&["GPU-a"], 1, Some(1))]);
    assert!(
        told[1].contains("is in use"),
        "a whole device is not shared: {}",
        told[1]
    );
}

#[test]
fn what_no_specification_tells_of_any_more_is_said() {
    let told = give(&[want(&["7"], 1, None)]);
    assert!(
        told[0].contains("no specification tells of the device `acme.com/gpu=7`"),
        "{}",
        told[0]
    );
}

fn launch() -> LaunchSpec {
    let id = InstanceId::new("one").unwrap();
    let mut launch = LaunchSpec::new(id, 1, vec!["/layer".into()], vec!["/bin/true".to_owned()]);
    launch.env = vec![
        ("ACME".to_owned(), "off".to_owned()),
        ("LD_LIBRARY_PATH".to_owned(), "/own".to_owned()),
    ];
    launch.limits.memory_bytes = Some(1 << 30);
    launch
}

fn given(edits: &str) -> Given {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        r#"{{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{{"name":"0","containerEdits":{edits}}}]}}"#
    );
    fs::write(folder.path().join("a.json"), text).unwrap();
    let devices = Devices::read(&[folder.path().to_owned()]);
    let mut want = want(&[], 1, None);
    want.among = vec!["a.b/c=0".to_owned()];
    choose(&want, &devices, std::iter::empty()).unwrap()
}

#[test]
fn what_a_device_asks_for_is_launched() {
    let given = given(
        r#"{"env":["ACME=on"],"additionalGids":[44],
            "deviceNodes":[{"path":"/dev/acme/0","hostPath":"/dev/zero"}],
            "mounts":[{"hostPath":"/usr/share","containerPath":"/opt/acme","options":["rw"]}],
            "hooks":[{"hookName":"createContainer","path":"/usr/bin/nvidia-ctk","args":
                ["nvidia-ctk","hook","update-ldcache","--folder","/opt/acme"]}]}"#,
    );
    let mut launch = launch();
    given.put_into(&mut launch).unwrap();
    assert!(launch.env.contains(&("ACME".to_owned(), "on".to_owned())));
    assert!(
        launch
            .env
            .contains(&("LD_LIBRARY_PATH".to_owned(), "/own:/opt/acme".to_owned()))
    );
    assert_eq!(launch.devices[0].source, PathBuf::from("/dev/zero"));
    assert!(launch.binds[0].readonly, "whatever the file says");
    assert_eq!(launch.user.groups, [44]);
    assert_eq!(launch.limits.shm_bytes, 512 << 20);
}

#[test]
fn what_cannot_be_used_is_said_before_the_launch() {
    let taken = given(r#"{"deviceNodes":[{"path":"/dev/null","hostPath":"/dev/zero"}]}"#);
    let error = taken.put_into(&mut launch()).unwrap_err();
    assert!(
        error.contains("/dev/null is not a free place below /dev"),
        "{error}"
    );
    let mut in_gvisor = launch();
    in_gvisor.gvisor = Some("/usr/bin/runsc".into());
    assert!(taken.put_into(&mut in_gvisor).unwrap_err().contains("gvisor"));
    let node = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    let path = node.path().display();
    let closed = given(&format!(
        r#"{{"deviceNodes":[{{"path":"/dev/acme0","hostPath":"{path}"}}]}}"#
    ));
    let mut alone = launch();
    alone.ids = Some(IdRange::numbered(1));
    let error = closed.put_into(&mut alone).unwrap_err();
    assert!(
        error.contains(&format!("the device {path} is not open to everybody")),
        "{error}"
    );
    closed.put_into(&mut launch()).unwrap();
}
