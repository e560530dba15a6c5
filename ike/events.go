package ike

import (
	"net/netip"
	"time"
)

// event is what happens to an IKE SA.
type event interface{ isEvent() }

type (
	// evDatagram: a message came in for one of our SPIs.
	evDatagram struct {
		path Path
		head header
		msg  []byte
	}
	// evFresh: the first message of an IKE SA that a stranger initiates, already judged by
	// Endpoint.acceptFresh.
	evFresh struct {
		path  Path
		raw   []byte
		req   *parsed
		offer chosenOffer
		set   *peerSet
		from  strangers

		patience time.Duration // see admission
		puzzle   authPuzzle    // see admission
	}
	// evResume: IKE_SESSION_RESUME of a stranger with a ticket of ours, judged by
	// Endpoint.acceptResume.
	evResume struct {
		path    Path
		raw     []byte
		req     *parsed
		session *session

		patience time.Duration // see admission
	}
	// evResumed: this generation lives on in another IKE SA, by its ticket.
	evResumed struct{ spiI, spiR uint64 }
	// evAddresses: our addresses are others.
	evAddresses struct{}
	// evRedirect: send the initiator to another gateway.
	evRedirect struct{ to netip.Addr }
	// evTimer: the deadline that the SA named has come.
	evTimer struct{ at time.Time }
	// evSigned: the answer to actSign.
	evSigned struct {
		job  uint64
		auth authValue
		err  error
	}
	// evVerdict: the answer to actVerify; one error (or nil) for each query.
	evVerdict struct {
		job      uint64
		verdicts []error
	}
	// evPeers: the connections were replaced.
	evPeers struct{ set *peerSet }
	// evInitiate: make this CHILD SA.
	evInitiate struct {
		child  string
		packet Flow // the zero Flow: none
	}
	// evTerminate: delete the IKE SA, telling the peer.
	evTerminate struct{ reason Reason }
	// evKill: forget the IKE SA, telling nobody.
	evKill        struct{ reason Reason }
	evDeleteChild struct {
		id     ChildID
		reason string
	}
	evRekeyChild struct{ id ChildID }
	evRekeyIKE   struct{}
	evReauth     struct{}
	// evWantQueues: this CHILD SA needs n in all.
	evWantQueues struct {
		child string
		n     int
	}
	// evInitialContact: a peer with these identities says that it has no other IKE SA with us
	// than the one that began then.
	evInitialContact struct {
		localIDs, remoteIDs []Identity
		begun               time.Time
	}
)

func (evDatagram) isEvent()       {}
func (evFresh) isEvent()          {}
func (evTimer) isEvent()          {}
func (evResume) isEvent()         {}
func (evAddresses) isEvent()      {}
func (evRedirect) isEvent()       {}
func (evResumed) isEvent()        {}
func (evSigned) isEvent()         {}
func (evVerdict) isEvent()        {}
func (evPeers) isEvent()          {}
func (evInitiate) isEvent()       {}
func (evTerminate) isEvent()      {}
func (evKill) isEvent()           {}
func (evDeleteChild) isEvent()    {}
func (evRekeyChild) isEvent()     {}
func (evRekeyIKE) isEvent()       {}
func (evReauth) isEvent()         {}
func (evWantQueues) isEvent()     {}
func (evInitialContact) isEvent() {}

// action is what an IKE SA wants done, in this order.
type action interface{ isAction() }

type (
	// actSend: send these datagrams.
	actSend struct {
		path Path
		msgs [][]byte
	}
	// actKeepalive: send a NAT keepalive.
	actKeepalive struct{ path Path }
	// actSign: compute our AUTH payload; it may take its time. The answer is evSigned.
	actSign struct {
		job  uint64
		sign func() (authValue, error)
	}
	// actVerify: judge the peer's AUTH payload and certificates; the answer is evVerdict.
	actVerify struct {
		job   uint64
		check func(verify func(CertQuery) error) []error
	}
	// actTell: tell the owner.
	actTell func(Owner)
	// actEstablished: all rounds are done; the IKE SA belongs to this connection.
	actEstablished struct {
		peer                string
		initialContact      bool
		localIDs, remoteIDs []Identity
		begun               time.Time
	}
	// actStranger: report a refusal of somebody who proved nothing, at a bounded rate.
	actStranger struct {
		path Path
		code Code
		text string
	}
	// actAgain: initiate this over another IKE SA.
	actAgain struct {
		peer string
		what evInitiate
	}
	// actReauth: make an IKE SA with these CHILD SAs in this one's place, at the same addresses first.
	actReauth struct {
		peer     string
		children []string
		path     Path
		spi      uint64 // of the initiator, of the newest keys
	}
	// actReplaced: end the IKE SA in whose place this one was made.
	actReplaced struct{ old SAID }
	// actResumed: the IKE SA with these SPIs, ours first, is forgotten where it still stands.
	actResumed struct{ ours, spiI, spiR uint64 }
	// actSaveChains: keep the peer's certificates for a ticket.
	actSaveChains struct{ proofs []proof }
	// actRedirect: make these CHILD SAs with another gateway, in place of an IKE SA if replaces is
	// not 0.
	actRedirect struct {
		peer      string
		path      Path
		children  []string
		redirects redirects
		replaces  SAID
	}
	// actClosed: the IKE SA has ended; nothing comes after it.
	actClosed struct{}
)

func (actSend) isAction()        {}
func (actKeepalive) isAction()   {}
func (actSign) isAction()        {}
func (actVerify) isAction()      {}
func (actTell) isAction()        {}
func (actEstablished) isAction() {}
func (actStranger) isAction()    {}
func (actAgain) isAction()       {}
func (actReauth) isAction()      {}
func (actReplaced) isAction()    {}
func (actClosed) isAction()      {}
func (actRedirect) isAction()    {}
func (actResumed) isAction()     {}
func (actSaveChains) isAction()  {}
