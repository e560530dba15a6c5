package ike

import (
	"iter"
	"slices"
)

// boxSet is some IKE SAs: nearly always one, which costs no memory beside the place of the set.
type boxSet struct {
	one  *box
	more map[SAID]*box // nil: one is the only one
}

func (s boxSet) len() int {
	switch {
	case s.more != nil:
		return len(s.more)
	case s.one != nil:
		return 1
	}
	return 0
}

func (s boxSet) has(b *box) bool {
	if s.more != nil {
		return s.more[b.id] == b
	}
	return s.one == b
}

func (s boxSet) with(b *box) boxSet {
	switch {
	case s.has(b):
	case s.more != nil:
		s.more[b.id] = b
	case s.one == nil:
		s.one = b
	default:
		s = boxSet{more: map[SAID]*box{s.one.id: s.one, b.id: b}}
	}
	return s
}

func (s boxSet) without(b *box) boxSet {
	switch {
	case !s.has(b):
	case s.more == nil:
		s.one = nil
	default:
		delete(s.more, b.id)
		if len(s.more) == 1 {
			for _, o := range s.more {
				s = boxSet{one: o}
			}
		}
	}
	return s
}

// all yields them in no order.
func (s boxSet) all() iter.Seq[*box] {
	return func(yield func(*box) bool) {
		if s.one != nil {
			yield(s.one)
		}
		for _, b := range s.more {
			if !yield(b) {
				return
			}
		}
	}
}

// sorted returns them with the oldest first.
func (s boxSet) sorted() []*box {
	if s.one != nil {
		return []*box{s.one}
	}
	return slices.SortedFunc(s.all(), func(x, y *box) int { return int(x.id) - int(y.id) })
}
