//! What does loading cost, and what does a language?
//!
//!     cargo build --profile plugin --target wasm32-wasip2 -p points -p 'guest-*'
//!     hapax build plugins/points-js && hapax build plugins/points-python
//!     cargo bench --bench plugins                  all of it
//!     cargo bench --bench plugins -- start         one part: load, start or message

#[path = "figures.rs"]
mod figures;
#[path = "figures/stage.rs"]
mod stage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use figures::{Figures, component, wanted};
use hapax::metrics::Metrics;
use hapax::plugins::PluginFile;
use hapax::sandbox::{Cache, Plugin, Verdict};
use stage::{ORDER, Stage, WORKERS};

/// Plugins of a host that starts.
const PLUGINS: usize = 20;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let stage = runtime.block_on(Stage::new());
    if wanted("load") {
        load(&stage);
    }
    if wanted("start") {
        runtime.block_on(start(&stage));
    }
    if wanted("message") {
        runtime.block_on(message(&stage));
    }
}

/// The same handler in each language, where it was built.
fn languages() -> Vec<(&'static str, PathBuf)> {
    let built = |name: &str| {
        let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins");
        plugins.join(format!("{name}/target/hapax/{name}.wasm"))
    };
    let mut languages = vec![("Rust", component("points"))];
    for (language, name) in [("JavaScript", "points-js"), ("Python", "points-python")] {
        let component = built(name);
        if component.is_file() {
            languages.push((language, component));
        } else {
            println!("{language}: left out; `hapax build plugins/{name}` makes it");
        }
    }
    languages
}

/// From bytes to a version that can run: compiled, and out of the cache. With the trial instance.
fn load(stage: &Stage) {
    for (language, path) in languages() {
        let bytes = std::fs::read(&path).expect("it is there");
        let place = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(&place.path().join("cache")).expect("a cache");
        let load = || {
            Plugin::from_cache(&stage.sandbox, language, &bytes, Some(&cache)).expect("it loads")
        };
        let size = format!("{:.1} MB", bytes.len() as f64 / 1e6);
        let mut compiled = Figures::new(format!("load: {language}, {size}, compiled"));
        let started = Instant::now();
        assert!(!load().was_cached());
        compiled.add(started.elapsed());
        compiled.show();
        assert!(load().was_cached());
        Figures::of(
            &format!("load: {language}, {size}, from the cache"),
            15,
            load,
        )
        .show();
    }
}

/// The plugins of a host with a warm cache, as it opens them: files, histories and trial instances.
async fn start(stage: &Stage) {
    let place = tempfile::tempdir().expect("a directory");
    let cache = Arc::new(Cache::open(&place.path().join("cache")).expect("a cache"));
    let points = std::fs::read(component("points")).expect("it is there");
    let files: Vec<_> = (0..PLUGINS)
        .map(|number| {
            let file = place.path().join(format!("{number}.wasm"));
            std::fs::write(&file, another(&points, number)).expect("written");
            file
        })
        .collect();
    let metrics = Metrics::new();
    let open = async || {
        let opened = files.iter().map(|file| {
            PluginFile::open(
                &stage.sandbox,
                file,
                Vec::new(),
                Some(Arc::clone(&cache)),
                &metrics,
            )
        });
        let opened = futures_util::future::join_all(opened).await;
        let cached = |file: &Arc<PluginFile>| file.current().was_cached();
        opened
            .iter()
            .filter(|file| file.as_ref().is_ok_and(cached))
            .count()
    };
    let mut cold = Figures::new(format!("start: {PLUGINS} plugins, compiled"));
    let started = Instant::now();
    assert_eq!(open().await, 0);
    cold.add(started.elapsed());
    cold.show();
    let mut warm = Figures::new(format!("start: {PLUGINS} plugins, from the cache"));
    for _ in 0..30 {
        let started = Instant::now();
        assert_eq!(open().await, PLUGINS);
        warm.add(started.elapsed());
    }
    warm.show();
}

/// The same component with a custom section that nobody reads: other bytes, and so another version.
fn another(component: &[u8], number: usize) -> Vec<u8> {
    let name = format!("version {number:04}");
    let size = u8::try_from(name.len()).expect("it is short");
    let mut bytes = component.to_vec();
    bytes.extend([0, size + 1, size]);
    bytes.extend(name.bytes());
    bytes
}

/// A fresh instance, JSON, one deferred statement, one message: the README's handler.
async fn message(stage: &Stage) {
    for (language, path) in languages() {
        let mut actor = stage.actor(&path, ORDER).await;
        let mut figures = Figures::new(format!("message: {language}"));
        let started = Instant::now();
        for _ in 0..100 {
            actor.run().await;
        }
        // As many as take some seconds.
        let times = (100.0 * 5.0 / started.elapsed().as_secs_f64()) as usize;
        for _ in 0..times.clamp(100, 50_000) {
            let (elapsed, verdict) = actor.run().await;
            assert!(matches!(verdict, Verdict::Done), "{verdict:?}");
            figures.add(elapsed);
        }
        figures.show();
    }
}
