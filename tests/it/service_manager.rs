//! systemd, played by a socket.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::Context;

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::Scene;
use crate::support::wait;

/// What the host says: that it is ready when it is, how it is, that it lives, that it stops.
pub async fn hears_of_start_life_and_stop(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let path = place.dir.join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let mut heard = String::new();
    let mut hear = async |what: &str, times: usize| {
        wait::until(what, wait::PATIENCE, async || {
            let mut datagram = [0; 4096];
            while let Ok(bytes) = socket.recv(&mut datagram) {
                heard.push_str(&String::from_utf8_lossy(&datagram[..bytes]));
            }
            Ok((heard.matches(what).count() >= times).then_some(()))
        })
        .await
        .with_context(|| format!("it said: {heard}"))
    };
    let variables = [
        ("NOTIFY_SOCKET", path.display().to_string()),
        ("WATCHDOG_USEC", "400000".to_owned()),
    ];
    let config = scene.config("host", scene.probe()?);
    let mut host = Host::launch_with(place, &config, &variables)?;
    hear("READY=1\n", 1).await?;
    hear("STATUS=1 of 1 consumers take messages\n", 1).await?;
    host.until_ready().await?;
    hear("WATCHDOG=1\n", 3).await?;
    host.sigterm()?;
    hear("STOPPING=1\n", 1).await?;
    let ended = tokio::time::timeout(Duration::from_secs(60), host.exit_code()).await??;
    assert_eq!(ended, 0);
    Ok(())
}
