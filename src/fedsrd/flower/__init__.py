"""FedSRD on Flower: the app (`server_app`, `client_app`), and what other Flower projects take (`FedSRD`, `fedsrd_mod`).

Needs `pip install fedsrd[flower]`.
"""
