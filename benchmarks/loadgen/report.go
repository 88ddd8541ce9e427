package main

// report is what a run prints, as one JSON object. A figure that does not apply is left out.
type report struct {
	Mode    string  `json:"mode"`
	Seconds float64 `json:"seconds"`
	// What the rate counts: messages, deliveries, events or echoes.
	Count    uint64  `json:"count"`
	RatePerS float64 `json:"rate_per_s"`
	// From sending to delivery; of an echo, its return.
	P50Ms *float64 `json:"p50_ms,omitempty"`
	P99Ms *float64 `json:"p99_ms,omitempty"`
	// From sending to the SendResult.
	AnswerP50Ms *float64 `json:"answer_p50_ms,omitempty"`
	AnswerP99Ms *float64 `json:"answer_p99_ms,omitempty"`
	// Resident memory of the servers for each idle stream.
	KBPerStream *float64 `json:"kb_per_stream,omitempty"`
	// CPU of all servers together, and of each service that they use.
	ServerCPUS   float64            `json:"server_cpu_s"`
	ServicesCPUS map[string]float64 `json:"services_cpu_s,omitempty"`
	LoadgenCPUS  float64            `json:"loadgen_cpu_s"`
}

func (m measured) report() *report {
	services := map[string]float64{}
	for name, used := range m.serviceCPU {
		services[name] = used.Seconds()
	}
	return &report{
		Seconds:      m.elapsed.Seconds(),
		Count:        m.count,
		RatePerS:     float64(m.count) / m.elapsed.Seconds(),
		ServerCPUS:   m.serverCPU.Seconds(),
		ServicesCPUS: services,
		LoadgenCPUS:  m.ownCPU.Seconds(),
	}
}
