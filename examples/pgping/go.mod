module gosandbox.example/pgping

go 1.19
