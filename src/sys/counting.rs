//! For unit tests only: an allocator that counts, to hold what runs after clone
//! to its word that it allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// How often the calling thread has allocated or freed.
pub(crate) fn count() -> usize {
    COUNT.get()
}

fn one_more() {
    // Not there any more while a thread ends.
    _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: it hands everything on to the system's allocator; the count is a plain
// number of the thread's own, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        one_more();
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        one_more();
        // SAFETY: as above; all memory comes from System.
        unsafe { System.dealloc(pointer, layout) }
    }
}
