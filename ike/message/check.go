package message

import "strconv"

// Form is one of the messages that the exchanges know: which payloads are mandatory and which
// are allowed depends on it. The state machine knows which one it expects; for
// CREATE_CHILD_SA requests ClassifyCreateChild finds out.
//
// Not supported, and refused by the table: EAP (a first IKE_AUTH request without AUTH).
type Form uint8

// Forms.
const (
	FormIKESAInitRequest Form = iota + 1
	FormIKESAInitResponse
	// FormIKEAuthFirstRequest is the IKE_AUTH request with Message ID 1 (2 and up after
	// IKE_INTERMEDIATE): first authentication, and the offer of the first CHILD SA.
	FormIKEAuthFirstRequest
	// FormIKEAuthNextRequest is any later IKE_AUTH request (RFC 4739): one more
	// authentication, or nothing if only the responder has one more.
	FormIKEAuthNextRequest
	// FormIKEAuthFirstResponse is the response to the first request when either peer announced
	// another authentication (RFC 4739): no CHILD SA yet.
	FormIKEAuthFirstResponse
	// FormIKEAuthNextResponse is a later response that is not the last one.
	FormIKEAuthNextResponse
	// FormIKEAuthOnlyResponse is the response that is the first one and the last one.
	FormIKEAuthOnlyResponse
	// FormIKEAuthLastResponse is the last response of several: with the CHILD SA, and with an
	// authentication if the responder had announced one.
	FormIKEAuthLastResponse
	FormNewChildRequest
	FormNewChildResponse
	FormRekeyChildRequest
	FormRekeyChildResponse
	FormRekeyIKERequest
	FormRekeyIKEResponse
	FormInformationalRequest
	FormInformationalResponse
	FormIntermediateRequest  // RFC 9242 with RFC 9370
	FormIntermediateResponse // RFC 9242 with RFC 9370
	FormFollowupKERequest    // RFC 9370
	FormFollowupKEResponse   // RFC 9370
	// FormChildlessFirstRequest, FormChildlessOnlyResponse and FormChildlessLastResponse are the
	// messages of IKE_AUTH without a CHILD SA (RFC 6023).
	FormChildlessFirstRequest
	FormChildlessOnlyResponse
	FormChildlessLastResponse
	FormResumeRequest  // RFC 5723
	FormResumeResponse // RFC 5723
)

// many stands for "any number", which MaxPayloads bounds.
const many = MaxPayloads

// rule says how often a payload may stand in a message.
type rule struct {
	payload  PayloadType
	min, max int
	// group: payloads of one group stand there all or not at all. The group of mandatory
	// payloads may be absent when the message reports an error instead (see form.replaced).
	group uint8
}

// Groups.
const (
	ungrouped uint8 = iota
	groupSA         // what makes an SA
	groupAuth       // one authentication
	groups
)

// form is the table's line for a Form. Notify, Vendor ID and unknown payloads may stand
// anywhere (RFC 7296, appendix C and section 2.5) and are not listed.
type form struct {
	name     string
	response bool
	rekeySA  bool // exactly one N(REKEY_SA)
	rules    []rule
	// replaced lists the status notifies that, like any error notify, may stand in place of
	// the mandatory payloads.
	replaced []NotifyType
}

var (
	childRules = []rule{
		{PayloadSA, 1, 1, groupSA},
		{PayloadNonce, 1, 1, groupSA},
		{PayloadTSi, 1, 1, groupSA},
		{PayloadTSr, 1, 1, groupSA},
		{PayloadKE, 0, 1, ungrouped},
		{PayloadCP, 0, 1, ungrouped},
	}
	rekeyIKERules = []rule{{PayloadSA, 1, 1, groupSA}, {PayloadKE, 1, 1, groupSA}, {PayloadNonce, 1, 1, groupSA}}
	infoRules     = []rule{{PayloadDelete, 0, many, ungrouped}, {PayloadCP, 0, 1, ungrouped}}
	resumeRules   = []rule{{PayloadNonce, 1, 1, groupSA}}
	followupRules = []rule{{PayloadKE, 1, 1, groupSA}}
	// RFC 9242 leaves the content open; whether a KE has to be there is known to the state machine.
	intermediateRules = []rule{{PayloadKE, 0, 1, ungrouped}, {PayloadCERTREQ, 0, many, ungrouped}}
)

// forms is the table of legal payloads (RFC 7296, appendix C; RFC 4739, section 2; RFC 8019, section 7.1.2).
var forms = [...]form{
	FormIKESAInitRequest: {name: "IKE_SA_INIT request", rules: []rule{
		{PayloadSA, 1, 1, groupSA}, {PayloadKE, 1, 1, groupSA}, {PayloadNonce, 1, 1, groupSA}, {PayloadPS, 0, 1, ungrouped},
	}},
	FormIKESAInitResponse: {name: "IKE_SA_INIT response", response: true, rules: []rule{
		{PayloadSA, 1, 1, groupSA}, {PayloadKE, 1, 1, groupSA}, {PayloadNonce, 1, 1, groupSA}, {PayloadCERTREQ, 0, many, ungrouped},
	}, replaced: []NotifyType{NotifyCookie, NotifyRedirect}},
	FormIKEAuthFirstRequest: {name: "first IKE_AUTH request", rules: []rule{
		{PayloadIDi, 1, 1, groupAuth},
		{PayloadAUTH, 1, 1, groupAuth},
		{PayloadCERT, 0, many, ungrouped},
		{PayloadCERTREQ, 0, many, ungrouped},
		{PayloadIDr, 0, 1, ungrouped},
		{PayloadCP, 0, 1, ungrouped},
		{PayloadSA, 1, 1, groupSA},
		{PayloadTSi, 1, 1, groupSA},
		{PayloadTSr, 1, 1, groupSA},
	}},
	FormIKEAuthNextRequest: {name: "later IKE_AUTH request", rules: []rule{
		{PayloadIDi, 0, 1, groupAuth},
		{PayloadAUTH, 0, 1, groupAuth},
		{PayloadCERT, 0, many, ungrouped},
		{PayloadCERTREQ, 0, many, ungrouped},
		{PayloadIDr, 0, 1, ungrouped},
	}},
	FormIKEAuthFirstResponse: {name: "first IKE_AUTH response of several", response: true, rules: []rule{
		{PayloadIDr, 1, 1, groupAuth}, {PayloadAUTH, 1, 1, groupAuth}, {PayloadCERT, 0, many, ungrouped},
	}},
	FormIKEAuthNextResponse: {name: "later IKE_AUTH response", response: true, rules: []rule{
		{PayloadIDr, 0, 1, groupAuth}, {PayloadAUTH, 0, 1, groupAuth}, {PayloadCERT, 0, many, ungrouped},
	}},
	FormIKEAuthOnlyResponse: {name: "IKE_AUTH response", response: true, rules: []rule{
		{PayloadIDr, 1, 1, groupAuth},
		{PayloadAUTH, 1, 1, groupAuth},
		{PayloadCERT, 0, many, ungrouped},
		{PayloadCP, 0, 1, ungrouped},
		{PayloadSA, 1, 1, groupSA},
		{PayloadTSi, 1, 1, groupSA},
		{PayloadTSr, 1, 1, groupSA},
	}, replaced: []NotifyType{NotifyRedirect}},
	FormIKEAuthLastResponse: {name: "last IKE_AUTH response of several", response: true, rules: []rule{
		{PayloadIDr, 0, 1, groupAuth},
		{PayloadAUTH, 0, 1, groupAuth},
		{PayloadCERT, 0, many, ungrouped},
		{PayloadCP, 0, 1, ungrouped},
		{PayloadSA, 1, 1, groupSA},
		{PayloadTSi, 1, 1, groupSA},
		{PayloadTSr, 1, 1, groupSA},
	}, replaced: []NotifyType{NotifyRedirect}},
	FormNewChildRequest:    {name: "CREATE_CHILD_SA request for a new CHILD SA", rules: childRules},
	FormNewChildResponse:   {name: "CREATE_CHILD_SA response for a new CHILD SA", response: true, rules: childRules},
	FormRekeyChildRequest:  {name: "CREATE_CHILD_SA request to rekey a CHILD SA", rekeySA: true, rules: childRules},
	FormRekeyChildResponse: {name: "CREATE_CHILD_SA response to rekey a CHILD SA", response: true, rules: childRules},
	FormRekeyIKERequest:    {name: "CREATE_CHILD_SA request to rekey the IKE SA", rules: rekeyIKERules},
	FormRekeyIKEResponse:   {name: "CREATE_CHILD_SA response to rekey the IKE SA", response: true, rules: rekeyIKERules},

	FormInformationalRequest:  {name: "INFORMATIONAL request", rules: infoRules},
	FormInformationalResponse: {name: "INFORMATIONAL response", response: true, rules: infoRules},
	FormIntermediateRequest:   {name: "IKE_INTERMEDIATE request", rules: intermediateRules},
	FormIntermediateResponse:  {name: "IKE_INTERMEDIATE response", response: true, rules: intermediateRules},
	FormFollowupKERequest:     {name: "IKE_FOLLOWUP_KE request", rules: followupRules},
	FormFollowupKEResponse:    {name: "IKE_FOLLOWUP_KE response", response: true, rules: followupRules},

	FormChildlessFirstRequest: {name: "first IKE_AUTH request without a CHILD SA", rules: []rule{
		{PayloadIDi, 1, 1, groupAuth},
		{PayloadAUTH, 1, 1, groupAuth},
		{PayloadCERT, 0, many, ungrouped},
		{PayloadCERTREQ, 0, many, ungrouped},
		{PayloadIDr, 0, 1, ungrouped},
		{PayloadCP, 0, 1, ungrouped},
	}},
	FormChildlessOnlyResponse: {name: "IKE_AUTH response without a CHILD SA", response: true, rules: []rule{
		{PayloadIDr, 1, 1, groupAuth}, {PayloadAUTH, 1, 1, groupAuth}, {PayloadCERT, 0, many, ungrouped}, {PayloadCP, 0, 1, ungrouped},
	}},
	FormChildlessLastResponse: {name: "last IKE_AUTH response of several, without a CHILD SA", response: true, rules: []rule{
		{PayloadIDr, 0, 1, groupAuth}, {PayloadAUTH, 0, 1, groupAuth}, {PayloadCERT, 0, many, ungrouped}, {PayloadCP, 0, 1, ungrouped},
	}},
	FormResumeRequest: {name: "IKE_SESSION_RESUME request", rules: resumeRules},
	FormResumeResponse: {
		name: "IKE_SESSION_RESUME response", response: true, rules: resumeRules,
		replaced: []NotifyType{NotifyCookie, NotifyTicketNack},
	},
}

func (f Form) valid() bool { return f > 0 && int(f) < len(forms) }

func (f Form) response() bool { return f.valid() && forms[f].response }

// String names the message.
func (f Form) String() string {
	if !f.valid() {
		return "Form(" + strconv.Itoa(int(f)) + ")"
	}
	return forms[f].name
}

// Check checks ps against the table of legal payloads and returns a *CheckError for the first
// thing that is wrong, else nil. After nil:
//
//   - A request holds every mandatory payload, and each payload at most as often as allowed.
//   - So does a response without an error notify (and without COOKIE or REDIRECT in
//     IKE_SA_INIT, REDIRECT in the only or last IKE_AUTH response).
//   - With such a notify, a response may lack the payloads of the authentication, or those of
//     the SA, or both, but never a part of either. The caller must therefore look at
//     Payloads.ErrorNotify, and at Auth() and SA() for nil: a failed CHILD SA leaves a valid
//     IKE SA (RFC 7296, section 2.21.2), a response without AUTH proves nothing.
//   - An SA payload offers proposals numbered 1, 2, 3, …, or answers with exactly one (RFC
//     7296, section 3.3.1).
func (f Form) Check(ps Payloads) error {
	if !f.valid() {
		return &CheckError{Form: f, Problem: ProblemNotAllowed}
	}
	t := &forms[f]
	var count [256]uint8 // a chain holds at most MaxPayloads
	if len(ps) > MaxPayloads {
		return &CheckError{Form: f, Problem: ProblemDuplicate, Got: len(ps), Max: MaxPayloads}
	}
	for _, p := range ps {
		count[p.PayloadType()]++
	}
	var allowed [256]bool
	var present [groups]bool
	for _, r := range t.rules {
		allowed[r.payload] = true
		n := int(count[r.payload])
		if n > r.max {
			return &CheckError{Form: f, Problem: ProblemDuplicate, Payload: r.payload, Got: n, Max: r.max}
		}
		if n > 0 {
			present[r.group] = true
		}
	}
	excused := t.response && t.hasReplacement(ps)
	for _, r := range t.rules {
		if count[r.payload] > 0 {
			continue
		}
		// A part of a group without the rest is never enough; a whole group may be missing if it
		// is optional or an error stands in its place.
		if r.group != ungrouped && present[r.group] || r.min > 0 && !excused {
			return &CheckError{Form: f, Problem: ProblemMissing, Payload: r.payload}
		}
	}
	for _, p := range ps {
		switch p.(type) {
		case *Notify, *VendorID, *Unknown:
			continue
		}
		if !allowed[p.PayloadType()] {
			return &CheckError{Form: f, Problem: ProblemNotAllowed, Payload: p.PayloadType(), Got: int(count[p.PayloadType()])}
		}
	}
	if t.rekeySA {
		if err := f.checkRekey(ps); err != nil {
			return err
		}
	}
	return f.checkProposals(ps.SA())
}

// hasReplacement reports whether a notify stands in place of the mandatory payloads.
func (t *form) hasReplacement(ps Payloads) bool {
	if ps.ErrorNotify() != nil {
		return true
	}
	for _, n := range t.replaced {
		if ps.HasNotify(n) {
			return true
		}
	}
	return false
}

func (f Form) checkRekey(ps Payloads) error {
	all := ps.Notifies(NotifyRekeySA)
	if len(all) == 1 {
		if _, ok := all[0].SPI32(); ok {
			return nil
		}
		return &CheckError{Form: f, Problem: ProblemRekeyNotify, Payload: PayloadNotify, Got: 0}
	}
	return &CheckError{Form: f, Problem: ProblemRekeyNotify, Payload: PayloadNotify, Got: len(all)}
}

func (f Form) checkProposals(sa *SA) error {
	if sa == nil {
		return nil
	}
	if f.response() {
		if n := len(sa.Proposals); n != 1 {
			return &CheckError{Form: f, Problem: ProblemProposals, Payload: PayloadSA, Got: n}
		}
		return nil
	}
	for i := range sa.Proposals {
		if int(sa.Proposals[i].Number) != i+1 {
			return &CheckError{Form: f, Problem: ProblemProposals, Payload: PayloadSA, Got: int(sa.Proposals[i].Number)}
		}
	}
	return nil
}

// ClassifyCreateChild says which of the three kinds of CREATE_CHILD_SA request ps is (RFC
// 7296, section 1.3): FormRekeyChildRequest with N(REKEY_SA), FormRekeyIKERequest if the
// first proposal is for IKE, else FormNewChildRequest. Check is still needed.
func ClassifyCreateChild(ps Payloads) Form {
	if ps.HasNotify(NotifyRekeySA) {
		return FormRekeyChildRequest
	}
	if sa := ps.SA(); sa != nil && len(sa.Proposals) > 0 && sa.Proposals[0].Protocol == ProtocolIKE {
		return FormRekeyIKERequest
	}
	return FormNewChildRequest
}
