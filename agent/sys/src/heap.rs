//! The allocator's heap: how much of it is in use, and giving the rest back to the kernel. glibc keeps what was freed; with
//! another C library there is nothing to do.

/// Bytes that are allocated; `None` where the allocator does not say.
#[must_use]
pub fn allocated_bytes() -> Option<u64> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes no argument, and returns numbers only.
        #[expect(unsafe_code, reason = "a function of the C library")]
        let info = unsafe { nix::libc::mallinfo2() };
        u64::try_from(info.uordblks.saturating_add(info.hblkhd)).ok()
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Gives free pages back to the kernel, from all of the heap and not from its end only. Takes the allocator's locks for a time
/// that grows with what is free.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: touches only memory that is not allocated.
        #[expect(unsafe_code, reason = "a function of the C library")]
        let _ = unsafe { nix::libc::malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process_metrics::anonymous_bytes;

    #[cfg(target_env = "gnu")]
    #[test]
    fn what_was_freed_between_allocations_that_stay_goes_back() {
        const PIECE: usize = 16 * 1024;
        let mut pieces: Vec<Option<Vec<u8>>> = (0..4096).map(|_| Some(vec![1; PIECE])).collect();
        let full = anonymous_bytes().unwrap();
        assert!(allocated_bytes().unwrap() >= 4096 * PIECE as u64);
        // Every 64th stays, the last one among them.
        for (at, piece) in pieces.iter_mut().enumerate().filter(|(at, _)| at % 64 != 63) {
            assert!(piece.take().is_some(), "{at}");
        }
        trim();
        let left = anonymous_bytes().unwrap();
        assert!(left + 48 * 1024 * 1024 < full, "{full} -> {left}");
    }
}
