//! One value per data thread.

use super::{Thread, Threads};

/// One value per data thread. A value may be reached from any thread; it is meant for its own, so that nothing in it is
/// contended.
#[derive(Debug)]
pub struct PerThread<T>(Box<[T]>);

impl<T> PerThread<T> {
    /// One value for each of the threads.
    pub fn new(threads: &Threads, make: impl FnMut(Thread) -> T) -> Self {
        Self(threads.iter().map(make).collect())
    }

    /// One value for each of the threads, and one for the compute thread.
    pub(crate) fn with_compute(threads: &Threads, make: impl FnMut(Thread) -> T) -> Self {
        Self(threads.iter().chain(threads.compute()).map(make).collect())
    }

    /// The value for the only thread there is.
    pub(crate) fn single(value: T) -> Self {
        Self(Box::new([value]))
    }

    /// One value for each that `self` has.
    pub(crate) fn map<U>(&self, make: impl FnMut(&T) -> U) -> PerThread<U> {
        PerThread(self.0.iter().map(make).collect())
    }

    /// The value of a thread.
    #[must_use]
    pub fn at(&self, thread: Thread) -> &T {
        &self.0[thread.index() % self.0.len()]
    }

    /// The value of the thread on which the caller runs.
    #[must_use]
    pub fn here(&self) -> &T {
        self.at(Thread::current())
    }

    /// Every thread's value.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<'a, T> IntoIterator for &'a PerThread<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
