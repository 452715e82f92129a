//! Payload memory of this process: sealed segments, and a private allocator over them.
//!
//! Nothing of the allocator is shared, so no peer can corrupt it. Small extents (up to 3584 bytes) are objects of a class
//! in a slab of 8 pages; larger ones are runs of whole pages. What was freed last is handed out first, because it is
//! still in the cache. A segment is used once every consumer has mapped it, and given back once it is empty:
//!
//! ```text
//! None ─ grow ─▶ Made ─ confirm ─▶ Used ◀─▶ Leaving ─ empty ─▶ Dropped ─ forget ─▶ None
//! ```
//!
//! This file is longer than 400 lines because extents, slabs and segments change the same lists: each step of one relies on
//! what the others leave.

use std::rc::Rc;

use crate::abi::{whole_pages, LINE, PAGE, SEGMENTS_MAX};
use crate::memory::{OwnMap, Refusal};

pub(crate) const SMALL_MAX: u64 = 3584;
const SLAB_PAGES: u32 = 8;
const QUICK: usize = 16;
const CLASSES: [u32; 19] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56];
/// Of a slab's index in a handle; else it is a run's.
const SLAB: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentState {
    None,
    Made,
    Used,
    Leaving,
    Dropped,
}

pub(crate) struct Segment {
    pub(crate) map: Option<Rc<OwnMap>>,
    pub(crate) state: SegmentState,
    /// Whether consumers were told of what `state` says.
    pub(crate) announced: bool,
    pages: u32,
    /// Free runs `(page, pages)`, by page, never touching each other.
    free: Vec<(u32, u32)>,
}

impl Segment {
    fn size(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.size())
    }

    fn is_empty(&self) -> bool {
        matches!(self.free[..], [(0, pages)] if pages == self.pages)
    }

    fn take(&mut self, pages: u32) -> Option<u32> {
        let at = (0..self.free.len()).filter(|at| self.free[*at].1 >= pages).min_by_key(|at| self.free[*at].1)?;
        let (page, there) = self.free[at];
        if there == pages {
            self.free.remove(at);
        } else {
            self.free[at] = (page + pages, there - pages);
        }
        Some(page)
    }

    fn give(&mut self, page: u32, pages: u32) {
        let at = self.free.partition_point(|run| run.0 < page);
        let joins_next = self.free.get(at).is_some_and(|next| page + pages == next.0);
        let joins_last = at > 0 && self.free[at - 1].0 + self.free[at - 1].1 == page;
        match (joins_last, joins_next) {
            (true, true) => {
                self.free[at - 1].1 += pages + self.free[at].1;
                self.free.remove(at);
            }
            (true, false) => self.free[at - 1].1 += pages,
            (false, true) => self.free[at] = (page, pages + self.free[at].1),
            (false, false) => self.free.insert(at, (page, pages)),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Run {
    segment: u16,
    page: u32,
    pages: u32,
    refs: u32,
}

#[derive(Default)]
struct Slab {
    segment: u16,
    page: u32,
    pages: u32,
    class: usize,
    total: u32,
    free: Vec<u16>,
    refs: Vec<u32>,
}

/// A piece of payload memory. `segment` and `offset` go into the descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    handle: Option<u64>,
    pub(crate) segment: u16,
    pub(crate) offset: u64,
}

impl Extent {
    /// Of a frame that has no bytes, or that nobody gets.
    pub(crate) const NONE: Self = Self { handle: None, segment: 0, offset: 0 };

    pub(crate) fn is_none(&self) -> bool {
        self.handle.is_none()
    }
}

/// Why an arena does not grow.
pub(crate) enum NoGrowth {
    /// Room will come back: wait for that.
    Wait,
    /// It can never fit.
    TooLarge,
    Refused(Refusal),
}

pub(crate) struct Arena {
    pub(crate) limit: u64,
    pub(crate) size: u64,
    pub(crate) used: u64,
    /// Most that was used since the last question for it.
    pub(crate) peak: u64,
    /// Counts what may make room.
    pub(crate) frees: u64,
    pub(crate) segments: Vec<Segment>,
    first: u64,
    runs: Vec<Run>,
    spare_runs: Vec<u32>,
    slabs: Vec<Slab>,
    spare_slabs: Vec<u32>,
    /// Slabs with a free object, by class; the last one is taken from.
    partial: [Vec<u32>; CLASSES.len()],
    /// The runs that were freed last.
    quick: Vec<Run>,
}

impl Arena {
    pub(crate) fn new(limit: u64, first: u64) -> Result<Self, Refusal> {
        let limit = limit / PAGE * PAGE;
        let mut arena = Self {
            limit,
            size: 0,
            used: 0,
            peak: 0,
            frees: 0,
            segments: Vec::new(),
            first: whole_pages(first).min(limit),
            runs: Vec::new(),
            spare_runs: Vec::new(),
            slabs: Vec::new(),
            spare_slabs: Vec::new(),
            partial: Default::default(),
            quick: Vec::with_capacity(QUICK),
        };
        let index = arena.add(arena.first)?;
        arena.confirm(index);
        Ok(arena)
    }

    // ---- extents ----------------------------------------------------------------------------------------------------

    fn run_take(&mut self, pages: u32) -> Option<(u16, u32)> {
        if let Some(at) = self.quick.iter().rposition(|run| run.pages == pages) {
            let run = self.quick.remove(at);
            return Some((run.segment, run.page));
        }
        if let Some(found) = self.cut(pages) {
            return Some(found);
        }
        self.flush();
        self.cut(pages)
    }

    fn cut(&mut self, pages: u32) -> Option<(u16, u32)> {
        self.segments.iter_mut().enumerate().find_map(|(index, segment)| {
            let page = (segment.state == SegmentState::Used).then(|| segment.take(pages))??;
            Some((index as u16, page))
        })
    }

    fn run_give(&mut self, segment: u16, page: u32, pages: u32) {
        if self.segments[usize::from(segment)].state != SegmentState::Used {
            self.segments[usize::from(segment)].give(page, pages);
            return;
        }
        if self.quick.len() == QUICK {
            let old = self.quick.remove(0);
            self.segments[usize::from(old.segment)].give(old.page, old.pages);
        }
        self.quick.push(Run { segment, page, pages, refs: 0 });
    }

    /// Merges the runs that were freed last, and gives back slabs that are empty.
    fn flush(&mut self) {
        while let Some(run) = self.quick.pop() {
            self.segments[usize::from(run.segment)].give(run.page, run.pages);
        }
        for class in 0..CLASSES.len() {
            let mut at = 0;
            while let Some(&index) = self.partial[class].get(at) {
                let slab = &mut self.slabs[index as usize];
                if slab.free.len() < slab.total as usize {
                    at += 1;
                    continue;
                }
                let (segment, page, pages) = (slab.segment, slab.page, slab.pages);
                self.partial[class].swap_remove(at);
                self.spare_slabs.push(index);
                self.segments[usize::from(segment)].give(page, pages);
            }
        }
    }

    fn slab_make(&mut self, class: usize) -> Option<u32> {
        let mut pages = SLAB_PAGES;
        let found = self.run_take(pages).or_else(|| {
            pages = 1;
            self.run_take(1)
        });
        let (segment, page) = found?;
        let total = pages * (PAGE / LINE) as u32 / CLASSES[class];
        let index = self.spare_slabs.pop().unwrap_or_else(|| {
            self.slabs.push(Slab::default());
            self.slabs.len() as u32 - 1
        });
        let slab = &mut self.slabs[index as usize];
        (slab.segment, slab.page, slab.pages, slab.class, slab.total) = (segment, page, pages, class, total);
        slab.free.clear();
        slab.free.extend((0..total as u16).rev());
        slab.refs.clear();
        slab.refs.resize(total as usize, 0);
        self.partial[class].push(index);
        Some(index)
    }

    fn small(&mut self, length: u64) -> Option<Extent> {
        let lines = length.div_ceil(LINE) as u32;
        let class = CLASSES.partition_point(|size| *size < lines);
        let index = match self.partial[class].last() {
            Some(index) => *index,
            None => self.slab_make(class)?,
        };
        let slab = &mut self.slabs[index as usize];
        let object = slab.free.pop()?;
        slab.refs[usize::from(object)] = 1;
        if slab.free.is_empty() {
            self.partial[class].pop();
        }
        let bytes = u64::from(CLASSES[class]) * LINE;
        let offset = u64::from(slab.page) * PAGE + u64::from(object) * bytes;
        let extent =
            Extent { handle: Some(SLAB | u64::from(index) << 16 | u64::from(object)), segment: slab.segment, offset };
        self.take(bytes);
        Some(extent)
    }

    fn take(&mut self, bytes: u64) {
        self.used += bytes;
        self.peak = self.peak.max(self.used);
    }

    /// An extent with one reference; None: there is no room now.
    pub(crate) fn alloc(&mut self, length: u64) -> Option<Extent> {
        if length == 0 {
            return Some(Extent::NONE);
        }
        if length <= SMALL_MAX {
            return self.small(length);
        }
        let pages = u32::try_from(length.div_ceil(PAGE)).ok()?;
        let (segment, page) = self.run_take(pages)?;
        let run = Run { segment, page, pages, refs: 1 };
        let index = match self.spare_runs.pop() {
            Some(index) => {
                self.runs[index as usize] = run;
                index
            }
            None => {
                self.runs.push(run);
                self.runs.len() as u32 - 1
            }
        };
        self.take(u64::from(pages) * PAGE);
        Some(Extent { handle: Some(u64::from(index)), segment, offset: u64::from(page) * PAGE })
    }

    /// So many further references: one for each further route that reads it.
    pub(crate) fn share(&mut self, extent: &Extent, more: u32) {
        match extent.handle {
            None => {}
            Some(handle) if handle & SLAB != 0 => {
                self.slabs[((handle & !SLAB) >> 16) as usize].refs[(handle & 0xFFFF) as usize] += more;
            }
            Some(handle) => self.runs[handle as usize].refs += more,
        }
    }

    /// One reference less; the last one frees it.
    pub(crate) fn drop_one(&mut self, extent: &Extent) {
        let Some(handle) = extent.handle else { return };
        if handle & SLAB != 0 {
            return self.small_free(((handle & !SLAB) >> 16) as u32, (handle & 0xFFFF) as u16);
        }
        let run = &mut self.runs[handle as usize];
        run.refs -= 1;
        if run.refs > 0 {
            return;
        }
        let run = *run;
        self.spare_runs.push(handle as u32);
        self.frees += 1;
        self.used -= u64::from(run.pages) * PAGE;
        self.run_give(run.segment, run.page, run.pages);
    }

    fn small_free(&mut self, index: u32, object: u16) {
        let slab = &mut self.slabs[index as usize];
        let refs = &mut slab.refs[usize::from(object)];
        *refs -= 1;
        if *refs > 0 {
            return;
        }
        let class = slab.class;
        self.frees += 1;
        self.used -= u64::from(CLASSES[class]) * LINE;
        slab.free.push(object);
        let leaving = self.segments[usize::from(slab.segment)].state != SegmentState::Used;
        let (free, total) = (slab.free.len(), slab.total as usize);
        let (segment, page, pages) = (slab.segment, slab.page, slab.pages);
        let partial = &mut self.partial[class];
        if free == 1 && !leaving {
            partial.push(index);
        }
        if free == total && (leaving || partial.len() > 1) {
            if !leaving {
                if let Some(at) = partial.iter().position(|other| *other == index) {
                    partial.swap_remove(at);
                }
            }
            self.spare_slabs.push(index);
            self.run_give(segment, page, pages);
        }
    }

    /// The memory of a segment that is used.
    pub(crate) fn map(&self, segment: u16) -> Option<&Rc<OwnMap>> {
        self.segments.get(usize::from(segment)).and_then(|segment| segment.map.as_ref())
    }

    // ---- segments ---------------------------------------------------------------------------------------------------

    /// A further segment, sealed and not confirmed.
    fn add(&mut self, size: u64) -> Result<usize, Refusal> {
        let map = OwnMap::create("chronetix-arena", size, None)?;
        let pages = (size / PAGE) as u32;
        let segment = Segment {
            map: Some(Rc::new(map)),
            state: SegmentState::Made,
            announced: false,
            pages,
            free: Vec::with_capacity(64),
        };
        self.size += size;
        if let Some(index) = self.segments.iter().position(|segment| segment.state == SegmentState::None) {
            self.segments[index] = segment;
            return Ok(index);
        }
        if self.segments.len() as u64 >= SEGMENTS_MAX {
            self.size -= size;
            return Err(Refusal::NoMemory);
        }
        self.segments.push(segment);
        Ok(self.segments.len() - 1)
    }

    /// Every consumer has mapped it.
    pub(crate) fn confirm(&mut self, index: usize) {
        let segment = &mut self.segments[index];
        if segment.state == SegmentState::Made {
            segment.state = SegmentState::Used;
            segment.free.push((0, segment.pages));
            self.frees += 1;
        }
    }

    /// Every consumer has unmapped it.
    pub(crate) fn forget(&mut self, index: usize) {
        if self.segments[index].state == SegmentState::Dropped {
            self.segments[index].state = SegmentState::None;
        }
    }

    fn leave(&mut self, index: usize) {
        self.flush();
        self.segments[index].state = SegmentState::Leaving;
        let slabs = &self.slabs;
        for partial in &mut self.partial {
            partial.retain(|slab| usize::from(slabs[*slab as usize].segment) != index);
        }
    }

    fn drop_segment(&mut self, index: usize) {
        let segment = &mut self.segments[index];
        self.size -= segment.size();
        segment.map = None;
        segment.free.clear();
        (segment.state, segment.announced) = (SegmentState::Dropped, false);
    }

    /// Uses the segments that are leaving again. Whether there was one.
    pub(crate) fn stay(&mut self) -> bool {
        let mut stayed = false;
        for index in 0..self.segments.len() {
            if self.segments[index].state == SegmentState::Leaving {
                self.stay_one(index);
                stayed = true;
            }
        }
        stayed
    }

    fn stay_one(&mut self, index: usize) {
        self.segments[index].state = SegmentState::Used;
        self.frees += 1;
        for (at, slab) in self.slabs.iter().enumerate() {
            let there =
                usize::from(slab.segment) == index && !slab.free.is_empty() && slab.free.len() < slab.total as usize;
            if there && !self.spare_slabs.contains(&(at as u32)) {
                self.partial[slab.class].push(at as u32);
            }
        }
    }

    fn of_state(&self, state: SegmentState) -> impl Iterator<Item = (usize, &Segment)> {
        self.segments.iter().enumerate().filter(move |(_, segment)| segment.state == state)
    }

    /// Has segments leave, largest first, as long as `keep` bytes stay, and drops those that are empty. Bytes given back.
    pub(crate) fn shrink(&mut self, keep: u64) -> u64 {
        let before = self.size;
        let least = if keep < self.first { 0 } else { self.first + 1 };
        let mut staying: u64 = self
            .of_state(SegmentState::Made)
            .chain(self.of_state(SegmentState::Used))
            .map(|(_, segment)| segment.size())
            .sum();
        while staying > keep {
            let found = self
                .of_state(SegmentState::Used)
                .filter(|(_, segment)| segment.size() >= least && segment.size() <= staying - keep)
                .max_by_key(|(_, segment)| segment.size())
                .map(|(index, segment)| (index, segment.size()));
            let Some((index, size)) = found else { break };
            staying -= size;
            self.leave(index);
        }
        for index in 0..self.segments.len() {
            if self.segments[index].state == SegmentState::Leaving && self.segments[index].is_empty() {
                self.drop_segment(index);
            }
        }
        before - self.size
    }

    /// A segment that is on its way and large enough.
    pub(crate) fn pending(&self, length: u64) -> Option<usize> {
        self.of_state(SegmentState::Made).find(|(_, segment)| segment.size() >= length).map(|(index, _)| index)
    }

    /// Doubles the arena, by at least what `length` needs.
    pub(crate) fn grow(&mut self, length: u64) -> Result<usize, NoGrowth> {
        if length > self.limit {
            return Err(NoGrowth::TooLarge);
        }
        let need = if length <= SMALL_MAX { u64::from(SLAB_PAGES) * PAGE } else { whole_pages(length) };
        let fits = self.segments.iter().any(|segment| segment.size() >= need);
        if need > self.limit - self.size && !fits {
            self.make_way(need);
        }
        let left = self.limit - self.size;
        if need > left {
            return Err(NoGrowth::Wait);
        }
        let size = self.size.max(self.first).max(need).min(left);
        let made = match self.add(size) {
            Err(Refusal::NoMemory) if size > need => self.add(need),
            made => made,
        };
        made.map_err(|refusal| match refusal {
            Refusal::NoMemory if fits && self.used > 0 => NoGrowth::Wait,
            other => NoGrowth::Refused(other),
        })
    }

    /// Drops empty segments if `need` bytes fit below the limit then.
    fn make_way(&mut self, need: u64) {
        self.flush();
        let empty: u64 = self
            .of_state(SegmentState::Used)
            .filter(|(_, segment)| segment.is_empty())
            .map(|(_, segment)| segment.size())
            .sum();
        if self.limit - self.size + empty < need {
            return;
        }
        for index in 0..self.segments.len() {
            let segment = &self.segments[index];
            if self.limit - self.size < need && segment.state == SegmentState::Used && segment.is_empty() {
                self.leave(index);
                self.drop_segment(index);
            }
        }
    }
}

#[cfg(test)]
mod tests;
