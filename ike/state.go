package ike

// State is where the life of an IKE SA stands.
//
//	initiator                               responder
//
//	  ┌──────────┐ cookie, other group        (nothing: stateless until a cookie
//	  │ StateInit├──┐                          came back, when cookies are asked)
//	  └────┬─────┘◄─┘                               │ IKE_SA_INIT answered
//	       │ IKE_SA_INIT answered                   ▼
//	       ▼                                  ┌───────────┐
//	  ┌───────────┐ round 1 … n               │ StateAuth │ round 1 … n, at most
//	  │ StateAuth ├──┐                        │           ├──┐ HalfOpenTimeout
//	  └────┬──────┘◄─┘                        └────┬──────┘◄─┘ in all
//	       │        every round proved by both     │
//	       ▼                                       ▼
//	  ┌────────────────────────────────────────────────┐
//	  │ StateEstablished  (rekeys stay in here)        │
//	  └────────────────────┬───────────────────────────┘
//	                       │ our Delete sent
//	                       ▼
//	                 StateDeleting ──► StateClosed
//
// Any state goes to StateClosed when the peer is dead, refused or has deleted the IKE SA.
type State uint8

// The states.
const (
	StateInit State = iota
	StateAuth
	StateEstablished
	StateDeleting
	StateClosed
)

// String returns the name for status output.
func (s State) String() string {
	switch s {
	case StateInit:
		return "init"
	case StateAuth:
		return "authenticating"
	case StateEstablished:
		return "established"
	case StateDeleting:
		return "deleting"
	case StateClosed:
		return "closed"
	}
	return "unknown"
}
