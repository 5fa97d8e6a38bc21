# Quantum ESPRESSO on chosen candidates, one job each. Only with qe.enabled.


rule validate_qe:
    input:
        screened=campaigns.at("screen_candidates", "candidates/screened.parquet"),
    output:
        "results/{campaign}/validation/candidate-{number}.parquet",
    log:
        "logs/{campaign}/validate_qe-{number}.log",
    benchmark:
        "results/{campaign}/timings/validate_qe-{number}.tsv"
    # Each goes on where the one before ran out of time or was interrupted.
    retries: 2
    conda:
        "../../envs/qe.yaml"
    threads: campaigns.threads("dft")
    resources:
        mem_mb=campaigns.mem_mb("dft"),
        runtime=campaigns.runtime("dft"),
    params:
        config="results/{campaign}/config.yaml",
        # Shared by the candidates, each in a folder named by what it is computed from.
        work="work/{campaign}/validate_qe",
        named=campaigns.named_candidate,
        settings=campaigns.settings("validate_qe"),
        code=stage_code_hash("validate_qe"),
    shell:
        "dao-pipeline validate-qe --config {params.config:q} --screened {input.screened:q}"
        " --number {wildcards.number} --out {output:q} --work {params.work:q}"
        " --minutes {resources.runtime} > {log:q} 2>&1"
