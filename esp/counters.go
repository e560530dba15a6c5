package esp

// Counters of one direction of an SA, from its start. Sums of several SAs make a connection's.
type Counters struct {
	Packets uint64 // sealed, or opened and authentic (dummies and malformed ones included)
	Bytes   uint64 // of inner packets
	LastSeq uint64 // last sent, or highest authenticated

	// Drops, by reason; one packet counts once.
	Replay    uint64 // seen before or too old
	Auth      uint64 // integrity check failed
	Malformed uint64
	Dummy     uint64 // not a failure
	HardLimit uint64
	NoRoom    uint64 // outbound: caller's buffer or inner packet of an impossible size
}

// Drops returns the number of packets that were refused, dummies not counted.
func (c Counters) Drops() uint64 {
	return c.Replay + c.Auth + c.Malformed + c.HardLimit + c.NoRoom
}
