//! A ring buffer that is waited for.

use std::marker::PhantomData;

use anyhow::Context;
use aya::{
    Pod,
    maps::{MapData, RingBuf},
};
use tokio::io::unix::AsyncFd;

/// Values as they come; there must be one reader.
pub(super) struct Ring<T> {
    ring: AsyncFd<RingBuf<MapData>>,
    values: PhantomData<T>,
}

impl<T: Pod> Ring<T> {
    /// Needs a runtime.
    pub(super) fn new(ring: RingBuf<MapData>) -> anyhow::Result<Self> {
        // SAFETY: the ring buffer owns its map's descriptor, and keeps it open and the same for as long as it lives.
        let ring = unsafe { AsyncFd::register(ring) };
        Ok(Self { ring: ring.context("waiting for the ring buffer")?, values: PhantomData })
    }

    /// `None`: no more so far.
    pub(super) fn take(&mut self) -> Option<T> {
        loop {
            let item = self.ring.get_mut().next()?;
            if item.len() >= size_of::<T>() {
                // SAFETY: long enough, read without regard to its alignment, and any bytes are a value (`Pod`).
                return Some(unsafe { item.as_ptr().cast::<T>().read_unaligned() });
            }
        }
    }

    /// Returns when there may be more.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        self.ring.readable().await.context("waiting for the ring buffer")?.clear_ready();
        Ok(())
    }
}
