package ike

import "wardgate/ike/message"

// TakeConfig reads a CFG_REPLY, as ConfigRequest r asked for it.
func TakeConfig(r *ConfigRequest, cp *message.CP) (*NetConfig, error) { return r.take(cp) }

// The arithmetic of selectors.
var (
	Narrow = narrow
	Within = within
	PairUp = pairUp
)

// Wish is what a responder with the policy makes of TSi and TSr, of the peer and our own: level 0 nothing,
// 1 part, 2 the first ones among it, 3 all.
func Wish(ours, theirs, tsr, tsi []Selector) (level int, local, remote []Selector) {
	w := wish{local: tsr, remote: tsi}
	f, local, remote := w.of(ours, theirs)
	return int(f.level), local, remote
}
