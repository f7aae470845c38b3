"""Serve a GGUF file with llama.cpp's own server: MODEL PORT SLOTS."""

import sys
import threading

import xllamacpp

SLOT_TOKENS = 1024

model, port, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = port
params.n_parallel = slots
params.n_ctx = slots * SLOT_TOKENS
params.cpuparams.n_threads = 2
params.use_jinja = True  # the server reads tools through the chat template
params.endpoint_slots = True
params.prefill_assistant = False  # the template handles a conversation that ends with a response
server = xllamacpp.Server(params)
print("listening at", server.listening_address, flush=True)
threading.Event().wait()
