package revocation

// Kept returns how many answers and failures are kept.
func (f *Fetcher) Kept() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.entries)
}
