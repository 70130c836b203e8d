//! One redb file: the ELBs, and what Marathon last said.
//!
//! Every commit reaches the disk before it returns, so whoever calls is not on the way of an event: ELBs are written by
//! the API's writer, remembered apps by [`Memory`], which collects for half a second.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use imbl::{OrdMap, ordmap::DiffItem};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::model::{
    app::{App, AppId},
    desired::Desired,
    elb::Elb,
};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ELBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("elbs");
const APPS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("apps");
/// Keys of META.
const SCHEMA: &str = "schema";
const REVISION: &str = "revision";
/// What this program writes. A file of a newer one is not touched.
const SCHEMA_NOW: u64 = 1;
/// redb would take up to 1 GiB; everything here fits in far less.
const CACHE_BYTES: usize = 16 << 20;
/// How long remembered apps are collected before they are written.
const COLLECT: Duration = Duration::from_millis(500);

/// The open file. Cloning is free.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<Database>,
    path: Arc<Path>,
}

/// What the file held.
#[derive(Debug, Default)]
pub struct Kept {
    pub desired: Desired,
    pub apps: Vec<App>,
    /// Rows that could not be read. They stay in the file.
    pub problems: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store {} is in use by another tidegate: stop that one, or give this one another file by `path` under [store]", .0.display())]
    InUse(PathBuf),
    #[error("opening the store {}: {why}; {}", path.display(), "the file must be writable and made by tidegate: check its owner, or name another by `path` under [store]")]
    Unusable { path: PathBuf, why: String },
    #[error("the store {} was written by a newer tidegate (schema {found}, this one knows {SCHEMA_NOW}): run that version", path.display())]
    Newer { path: PathBuf, found: u64 },
    #[error("the store is at revision {found}, not {expected}: somebody else has written; ask again")]
    Conflict { expected: u64, found: u64 },
    #[error("the store {}: {source}; is the disk full or read-only?", path.display())]
    Io { path: PathBuf, source: Box<redb::Error> },
}

impl Store {
    /// Opens the file, or makes it together with its directory.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let unusable = |why: String| StoreError::Unusable { path: path.to_owned(), why };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory)
                .map_err(|error| unusable(format!("making the directory {}: {error}", directory.display())))?;
        }
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                StoreError::InUse(path.to_owned())
            }
            other => unusable(other.to_string()),
        })?;
        let store = Self { database: Arc::new(database), path: path.into() };
        store.prepare()?;
        Ok(store)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let transaction = self.io(self.database.begin_write())?;
        let found = {
            self.io(transaction.open_table(ELBS))?;
            self.io(transaction.open_table(APPS))?;
            let mut meta = self.io(transaction.open_table(META))?;
            let found = self.io(meta.get(SCHEMA))?.map(|value| value.value());
            if found.is_none() {
                self.io(meta.insert(SCHEMA, SCHEMA_NOW))?;
            }
            found.unwrap_or(SCHEMA_NOW)
        };
        if found > SCHEMA_NOW {
            return Err(StoreError::Newer { path: self.path.to_path_buf(), found });
        }
        self.io(transaction.commit())
    }

    /// Everything that the file holds.
    pub fn load(&self) -> Result<Kept, StoreError> {
        let transaction = self.io(self.database.begin_read())?;
        let mut kept = Kept::default();
        let elbs = self.io(transaction.open_table(ELBS))?;
        for (name, elb) in self.rows::<Elb>(&elbs, "ELB", &mut kept.problems)? {
            kept.desired.revision = kept.desired.revision.max(elb.revision);
            kept.desired.elbs.insert(name, Arc::new(elb));
        }
        let meta = self.io(transaction.open_table(META))?;
        let revision = self.io(meta.get(REVISION))?.map_or(0, |value| value.value());
        kept.desired.revision = kept.desired.revision.max(revision);
        let apps = self.io(transaction.open_table(APPS))?;
        kept.apps = self.rows(&apps, "app", &mut kept.problems)?.into_iter().map(|(_, app)| app).collect();
        Ok(kept)
    }

    fn rows<T: DeserializeOwned>(
        &self,
        table: &impl ReadableTable<&'static str, &'static [u8]>,
        noun: &str,
        problems: &mut Vec<String>,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let mut rows = Vec::new();
        for row in self.io(table.iter())? {
            let (key, value) = self.io(row)?;
            match serde_json::from_slice(value.value()) {
                Ok(value) => rows.push((key.value().to_owned(), value)),
                Err(error) => problems.push(format!(
                    "the store {} holds the {noun} {:?} in a form that cannot be read ({error}): it is left out",
                    self.path.display(),
                    key.value()
                )),
            }
        }
        Ok(rows)
    }

    /// Writes what differs between two states of the ELBs, if the file still is at the old one.
    pub async fn commit(&self, old: Desired, new: Desired) -> Result<(), StoreError> {
        self.blocking(move |store| store.commit_now(&old, &new)).await
    }

    fn commit_now(&self, old: &Desired, new: &Desired) -> Result<(), StoreError> {
        let transaction = self.io(self.database.begin_write())?;
        {
            let mut meta = self.io(transaction.open_table(META))?;
            let found = self.io(meta.get(REVISION))?.map_or(0, |value| value.value());
            // A file from before the first write has no revision; rows that could not be read may have had a newer one.
            if found > old.revision {
                return Err(StoreError::Conflict { expected: old.revision, found });
            }
            self.io(meta.insert(REVISION, new.revision))?;
            let mut elbs = self.io(transaction.open_table(ELBS))?;
            for item in old.elbs.diff(&new.elbs) {
                match item {
                    DiffItem::Add(name, elb) | DiffItem::Update { new: (name, elb), .. } => {
                        self.io(elbs.insert(name.as_str(), to_json(&**elb).as_slice()))?;
                    }
                    DiffItem::Remove(name, _) => {
                        self.io(elbs.remove(name.as_str()))?;
                    }
                }
            }
        }
        self.io(transaction.commit())
    }

    /// Writes apps as they are now believed, `None`: forgets them.
    pub async fn remember(&self, apps: HashMap<AppId, Option<Arc<App>>>) -> Result<(), StoreError> {
        self.blocking(move |store| store.remember_now(&apps)).await
    }

    fn remember_now(&self, apps: &HashMap<AppId, Option<Arc<App>>>) -> Result<(), StoreError> {
        let transaction = self.io(self.database.begin_write())?;
        {
            let mut table = self.io(transaction.open_table(APPS))?;
            for (id, app) in apps {
                match app {
                    Some(app) => self.io(table.insert(&**id, to_json(&**app).as_slice())).map(drop)?,
                    None => self.io(table.remove(&**id)).map(drop)?,
                }
            }
        }
        self.io(transaction.commit())
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn io<T, E: Into<redb::Error>>(&self, result: Result<T, E>) -> Result<T, StoreError> {
        result.map_err(|error| StoreError::Io { path: self.path.to_path_buf(), source: Box::new(error.into()) })
    }
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types have string keys and cannot fail to be written")
}

/// Apps on their way into the store: the newest of each, so that it is never more than there are apps.
#[derive(Debug, Default)]
pub struct Memory {
    waiting: Mutex<HashMap<AppId, Option<Arc<App>>>>,
    news: Notify,
}

impl Memory {
    /// Never waits for the disk.
    pub fn remember(&self, id: AppId, app: Option<Arc<App>>) {
        self.waiting.lock().expect("no holder panics").insert(id, app);
        self.news.notify_one();
    }

    fn take(&self) -> HashMap<AppId, Option<Arc<App>>> {
        std::mem::take(&mut *self.waiting.lock().expect("no holder panics"))
    }

    /// Gives back what could not be written, unless there is something newer.
    fn give_back(&self, apps: HashMap<AppId, Option<Arc<App>>>) {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        for (id, app) in apps {
            waiting.entry(id).or_insert(app);
        }
    }

    /// Writes until `stop`, then once more. What is wrong with the disk goes to `trouble` (`None`: it is over).
    pub async fn keep(&self, store: &Store, stop: CancellationToken, trouble: impl Fn(Option<String>)) {
        let mut failing = false;
        loop {
            let last = tokio::select! {
                () = self.news.notified() => tokio::time::timeout(COLLECT, stop.cancelled()).await.is_ok(),
                () = stop.cancelled() => true,
            };
            let apps = self.take();
            if !apps.is_empty() {
                let kept = apps.clone();
                match store.remember(apps).await {
                    Ok(()) if failing => {
                        failing = false;
                        trouble(None);
                    }
                    Ok(()) => {}
                    Err(error) => {
                        failing = true;
                        trouble(Some(error.to_string()));
                        self.give_back(kept);
                        // Not at once again: a full disk stays full for a while.
                        let _ = tokio::time::timeout(COLLECT * 10, stop.cancelled()).await;
                        self.news.notify_one();
                    }
                }
            }
            if last {
                return;
            }
        }
    }
}

/// The ELBs by name, as they travel between machines.
pub type ElbRows = OrdMap<String, Arc<Elb>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::elb::ElbSpec;

    fn elb(revision: u64) -> Arc<Elb> {
        let spec: ElbSpec =
            serde_json::from_str(r#"{"type":"layer4","app":"/demo","ports":[{"listen":80,"target":8080}]}"#).unwrap();
        Arc::new(Elb { spec, vips: vec!["10.77.100.1".parse().unwrap()], revision })
    }

    fn app(id: &str) -> Arc<App> {
        Arc::new(App {
            id: id.into(),
            version: "v1".into(),
            wanted: 3,
            definitions: OrdMap::new(),
            instances: OrdMap::new(),
            deployments: vec!["d".to_owned()],
        })
    }

    fn desired(rows: &[(&str, u64)]) -> Desired {
        Desired {
            elbs: rows.iter().map(|(name, revision)| ((*name).to_owned(), elb(*revision))).collect(),
            revision: rows.iter().map(|row| row.1).max().unwrap_or(0),
        }
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/t.redb");
        let (one, mut two) = (desired(&[("a", 1), ("b", 2)]), desired(&[("b", 3), ("c", 4)]));
        {
            let store = Store::open(&path).unwrap();
            store.commit(Desired::default(), one.clone()).await.unwrap();
            store.commit(one, two.clone()).await.unwrap();
            store.remember([("/x".into(), Some(app("/x"))), ("/y".into(), Some(app("/y")))].into()).await.unwrap();
            store.remember([("/y".into(), None)].into()).await.unwrap();
        }
        let kept = Store::open(&path).unwrap().load().unwrap();
        assert_eq!(kept.desired, two);
        assert_eq!(kept.apps, [(*app("/x")).clone()]);
        assert!(kept.problems.is_empty());
        // A delete leaves no row to tell its revision, but the revision stays.
        let store = Store::open(&directory.path().join("u.redb")).unwrap();
        store.commit(Desired::default(), two.clone()).await.unwrap();
        let old = two.clone();
        two.elbs.clear();
        two.revision = 5;
        store.commit(old, two.clone()).await.unwrap();
        assert_eq!(store.load().unwrap().desired, two);
    }

    #[tokio::test]
    async fn a_writer_that_missed_a_revision_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("t.redb")).unwrap();
        store.commit(Desired::default(), desired(&[("a", 1)])).await.unwrap();
        let error = store.commit(Desired::default(), desired(&[("b", 1)])).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict { expected: 0, found: 1 }), "{error}");
        assert_eq!(store.load().unwrap().desired, desired(&[("a", 1)]));
    }

    #[test]
    fn a_file_in_use_or_of_somebody_else_is_said_to_be_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.redb");
        let _first = Store::open(&path).unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("another tidegate") && error.contains("t.redb"), "{error}");

        let other = directory.path().join("other");
        std::fs::write(&other, "not a database, but long enough to be looked at".repeat(1000)).unwrap();
        let error = Store::open(&other).unwrap_err().to_string();
        assert!(error.contains("made by tidegate"), "{error}");

        let error = Store::open(&other.join("below/t.redb")).unwrap_err().to_string();
        assert!(error.contains("making the directory"), "{error}");
    }

    #[test]
    fn a_newer_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.redb");
        let store = Store::open(&path).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(SCHEMA, 2).unwrap();
        transaction.commit().unwrap();
        drop(store);
        assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 2, .. })));
    }

    #[tokio::test]
    async fn a_broken_row_is_reported_and_the_others_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("t.redb")).unwrap();
        store.commit(Desired::default(), desired(&[("a", 1)])).await.unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(ELBS).unwrap().insert("b", b"{\"spec\":".as_slice()).unwrap();
        transaction.open_table(APPS).unwrap().insert("/x", b"[]".as_slice()).unwrap();
        transaction.commit().unwrap();
        let kept = store.load().unwrap();
        assert_eq!(kept.desired, desired(&[("a", 1)]));
        assert_eq!(kept.problems.len(), 2, "{:?}", kept.problems);
        assert!(kept.problems[0].contains("\"b\""), "{:?}", kept.problems);
    }

    #[tokio::test]
    async fn memory_writes_the_newest_of_each_app_at_the_latest_when_it_stops() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("t.redb")).unwrap();
        let memory = Memory::default();
        memory.remember("/x".into(), None);
        memory.remember("/x".into(), Some(app("/x")));
        let stop = CancellationToken::new();
        stop.cancel();
        memory.keep(&store, stop, |trouble| assert_eq!(trouble, None)).await;
        assert_eq!(store.load().unwrap().apps.len(), 1);
    }
}
