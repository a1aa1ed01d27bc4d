use super::*;

fn digests(versions: &[u8]) -> Vec<PluginDigest> {
    versions.iter().map(|version| [*version; 32]).collect()
}

#[test]
fn a_version_is_remembered_once_and_the_oldest_are_forgotten() {
    let mut versions = Vec::new();
    assert!(remember(&mut versions, [1; 32]));
    assert!(!remember(&mut versions, [1; 32]));
    for version in 2..=40 {
        remember(&mut versions, [version; 32]);
    }
    assert_eq!(versions.len(), MAX_VERSIONS);
    assert_eq!(versions.last(), Some(&[40; 32]));
    assert_eq!(versions.first(), Some(&[25; 32]));
}

#[test]
fn a_rollback_goes_to_the_version_before_the_last_time_this_one_came() {
    let before = |versions: &[u8], now: u8| {
        let versions = digests(versions);
        earlier(&versions, &[now; 32])
            .next_back()
            .map(|digest| digest[0])
    };
    assert_eq!(before(&[1, 2, 3], 3), Some(2));
    assert_eq!(before(&[1, 2, 1], 1), Some(2));
    assert_eq!(before(&[1], 1), None);
    assert_eq!(before(&[], 1), None);
    // The file was changed while no host looked.
    assert_eq!(before(&[1, 2], 3), Some(2));
}

#[test]
fn a_file_that_was_written_over_looks_changed() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("a.wasm");
    assert_eq!(Seen::look(&file), None);
    std::fs::write(&file, "one").expect("written");
    let one = Seen::look(&file);
    assert_eq!(one, Seen::look(&file));
    std::fs::write(directory.path().join("b"), "two").expect("written");
    std::fs::rename(directory.path().join("b"), &file).expect("renamed");
    assert_ne!(one, Seen::look(&file));
}

#[test]
fn a_link_is_kept_and_what_it_leads_to_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    std::fs::write(&real, "one").expect("written");
    #[cfg(unix)]
    std::os::unix::fs::symlink("real", &link).expect("linked");
    put(&link, b"two").expect("replaced");
    assert_eq!(std::fs::read(&real).expect("read"), b"two");
    assert!(
        std::fs::symlink_metadata(&link)
            .expect("there")
            .is_symlink()
    );
}

#[tokio::test]
async fn what_may_pass_by_itself_is_tried_again_and_a_bad_plugin_is_not() {
    let component = |number: u32| {
        let global = format!("(global i32 (i32.const {number}))");
        crate::sandbox::tests::component::guest(&global, "(i32.const 1024)")
    };
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("a.wasm");
    fs::write(&file, component(1)).expect("written");
    let sandbox = Sandbox::new(crate::sandbox::SandboxOptions {
        concurrent_instances: 1,
        max_memory: 1 << 20,
        max_table_elements: 1_000,
        metered: false,
        compile_timeout: crate::config::COMPILE_TIMEOUT,
    });
    let sandbox = sandbox.expect("the engine starts");
    let metrics = Metrics::new();
    let plugin = PluginFile::open(&sandbox, &file, Vec::new(), None, &metrics);
    let plugin = plugin.await.expect("it loads");
    let first = *plugin.current().digest();

    fs::write(&file, component(2)).expect("written");
    let second: PluginDigest = Sha256::digest(component(2)).into();
    let refuse = |problem| {
        let name = "a.wasm".to_owned();
        plugin.refuse(Some(second), &LoadError { name, problem });
    };
    refuse(LoadProblem::Start("it traps".into()));
    plugin.refresh().await;
    assert_eq!(*plugin.current().digest(), first);

    refuse(LoadProblem::Slow("the machine is busy".into()));
    assert!(!plugin.is_due(), "not at once");
    plugin.records().again = Some(Instant::now());
    assert!(plugin.is_due());
    plugin.refresh().await;
    assert_eq!(*plugin.current().digest(), second);
    assert_eq!(plugin.state().refused, None);
    assert!(!plugin.is_due());
}
