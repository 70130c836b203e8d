//! A map as memory: an array that the kernel made with `BPF_F_MMAPABLE`, without a system call for each value.

use std::{
    marker::PhantomData,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use anyhow::{Context, bail};
use aya::{
    Pod,
    maps::{Map, MapData},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The values are those of the map, or parts of them that fill them.
///
/// The program and other processes write the same memory. So it is read and written word by word, with plain loads and
/// stores that neither tear nor are left out: values of one word are always whole, and of larger ones each word is.
pub(crate) struct Mapped<T> {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
    count: usize,
    values: PhantomData<T>,
}

// SAFETY: the memory belongs to no thread, and every access to it is an atomic one.
unsafe impl<T: Pod + Send> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Sync> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// The map may be closed then: the memory keeps it.
    pub(crate) fn of(map: Map) -> anyhow::Result<Self> {
        let Map::Array(data) = map else { bail!("only arrays can be memory") };
        Self::of_data(&data)
    }

    fn of_data(data: &MapData) -> anyhow::Result<Self> {
        let info = data.info().context("asking for the map's size")?;
        // The kernel rounds values up to 8 bytes.
        let value = (info.value_size() as usize).next_multiple_of(8);
        let entries = info.max_entries() as usize;
        let size = size_of::<T>();
        if size == 0 || !value.is_multiple_of(size) || !size.is_multiple_of(4) || align_of::<T>() > value {
            bail!("its values have {value} bytes, which are no whole number of {}", std::any::type_name::<T>());
        }
        let bytes = NonZeroUsize::new(value * entries).context("it is empty")?;
        // SAFETY: a new mapping at a place that the kernel chooses; the map is as long as asked for.
        let start = unsafe {
            mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, data.fd(), 0)
        };
        let start = start.context("making it memory (it must be made with BPF_F_MMAPABLE)")?;
        Ok(Self { start: start.cast(), bytes, count: value * entries / size, values: PhantomData })
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn get(&self, index: usize) -> Option<T> {
        let place = self.place(index)?;
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast::<u8>();
        // SAFETY: `place` has the value's words, each aligned (see `place`); all of `value` is written, and any bytes
        // are a value (`Pod`).
        unsafe {
            if size_of::<T>().is_multiple_of(8) {
                for word in (0..size_of::<T>()).step_by(8) {
                    let read = AtomicU64::from_ptr(place.add(word).cast()).load(Ordering::Relaxed);
                    to.add(word).cast::<u64>().write_unaligned(read);
                }
            } else {
                for word in (0..size_of::<T>()).step_by(4) {
                    let read = AtomicU32::from_ptr(place.add(word).cast()).load(Ordering::Relaxed);
                    to.add(word).cast::<u32>().write_unaligned(read);
                }
            }
            Some(value.assume_init())
        }
    }

    /// False: there is no such place.
    #[must_use]
    pub(crate) fn set(&self, index: usize, value: &T) -> bool {
        let Some(place) = self.place(index) else { return false };
        let from = std::ptr::from_ref(value).cast::<u8>();
        // SAFETY: as in `get`. A value is made of integers without padding (`Pod`), so all of its bytes may be read.
        // Stores of what is there already are left out: each would take the cache line from other processors.
        unsafe {
            if size_of::<T>().is_multiple_of(8) {
                for word in (0..size_of::<T>()).step_by(8) {
                    let to = AtomicU64::from_ptr(place.add(word).cast());
                    let new = from.add(word).cast::<u64>().read_unaligned();
                    if to.load(Ordering::Relaxed) != new {
                        to.store(new, Ordering::Release);
                    }
                }
            } else {
                for word in (0..size_of::<T>()).step_by(4) {
                    let to = AtomicU32::from_ptr(place.add(word).cast());
                    let new = from.add(word).cast::<u32>().read_unaligned();
                    if to.load(Ordering::Relaxed) != new {
                        to.store(new, Ordering::Release);
                    }
                }
            }
        }
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        (0..self.count).filter_map(|index| self.get(index))
    }

    /// Where a value begins. Mappings begin at a page, and sizes are multiples of 4; those that are accessed by 8 bytes
    /// are multiples of 8: so each word is aligned.
    fn place(&self, index: usize) -> Option<*mut u8> {
        // SAFETY: inside the mapping, since `count` values fit.
        (index < self.count).then(|| unsafe { self.start.as_ptr().add(index * size_of::<T>()) })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody else knows its address.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

impl<T> std::fmt::Debug for Mapped<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped").field("count", &self.count).finish_non_exhaustive()
    }
}
