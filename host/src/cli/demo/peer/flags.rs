//! The flags: which orders were seen. A store of its own, as Redis is in the usual recipe.
//!
//! It is a SQLite file that stands for Redis, so that the demo needs nothing installed. It is kinder than
//! Redis: it never evicts or expires a flag, and never fails over. What matters is the same: it commits by
//! itself, not together with the work.

use std::path::Path;

use sqlx::SqlitePool;

use crate::cli::demo::sqlite;

pub struct Flags {
    pool: SqlitePool,
}

impl Flags {
    pub async fn open(dir: &Path) -> anyhow::Result<Self> {
        let pool = sqlite::open(&dir.join("flags.db")).await?;
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS flags (key TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID",
        )
        .execute(&pool)
        .await?;
        Ok(Self { pool })
    }

    /// `EXISTS key`.
    pub async fn is_set(&self, key: &str) -> anyhow::Result<bool> {
        let row = sqlx::query("SELECT 1 FROM flags WHERE key = $1").bind(key);
        Ok(row.fetch_optional(&self.pool).await?.is_some())
    }

    /// `SET key 1`.
    pub async fn set(&self, key: &str) -> anyhow::Result<()> {
        self.set_if_absent(key).await?;
        Ok(())
    }

    /// `SET key 1 NX`: whether it was this call that set the flag.
    pub async fn set_if_absent(&self, key: &str) -> anyhow::Result<bool> {
        let insert =
            sqlx::query("INSERT INTO flags (key) VALUES ($1) ON CONFLICT DO NOTHING").bind(key);
        Ok(insert.execute(&self.pool).await?.rows_affected() == 1)
    }
}
