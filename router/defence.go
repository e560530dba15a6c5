package router

import (
	"go.uber.org/zap"

	"wardgate/ike"
)

// solveDifficulty is ike.Config.SolveDifficulty for [limits] puzzle_solve, whose 0 means none.
func solveDifficulty(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// defenceChanged is told when strangers are met in another way (RFC 8019).
func (r *Router) defenceChanged(d ike.Defence) {
	log := r.log.Info
	if d.Level > ike.DefenceNone {
		log = r.log.Warn
	}
	log("defence against strangers", zap.Stringer("level", d.Level), zap.Int("half_open", d.HalfOpen), zap.Int("by_lot", d.ByLot),
		zap.Uint8("difficulty", d.Difficulty), zap.Uint64("cookies", d.Cookies), zap.Uint64("puzzles", d.Puzzles), zap.Uint64("solved", d.Solved),
		zap.Uint64("unsolved", d.Unsolved), zap.Uint64("dropped", d.Dropped), zap.Uint64("no_room", d.NoRoom))
}

// defenceCounters adds how strangers are met to the counters.
func (r *Router) defenceCounters(other map[string]uint64) {
	d := r.ep.Defence()
	for name, n := range map[string]uint64{
		"level": uint64(d.Level), "difficulty": uint64(d.Difficulty), "half_open": uint64(d.HalfOpen), "by_lot": uint64(d.ByLot),
		"cookies": d.Cookies, "puzzles": d.Puzzles, "solved": d.Solved, "unsolved": d.Unsolved, "replayed": d.Replayed,
		"lot_won": d.LotWon, "dropped": d.Dropped, "malformed": d.Malformed, "no_room": d.NoRoom,
	} {
		other["ike_defence_"+name] = n
	}
}
